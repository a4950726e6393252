"""Merging on the command line: from image tasks to a table of methods.

A base learns from few labels (where asked, from images without labels first), one expert for each
task starts from it, the experts are merged by every method, and the models are compared on the test
sets. What adapts at test time is given the test images and never a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.data.images import Task, digit_tasks, read_tasks
from jaxmethods.layout import Layout, Rule, seed_axes
from jaxmethods.merging import evaluate
from jaxmethods.merging.adaptive import adamerging, surgery, wemoe
from jaxmethods.merging.adaptive.adaptation import Heads, Unlabeled, classify
from jaxmethods.merging.config import (
    AdaMergingConfig,
    DataConfig,
    NetworkConfig,
    SurgeryConfig,
    WEMoEConfig,
)
from jaxmethods.merging.config import ComparisonRun as Run
from jaxmethods.merging.finetuning import (
    BASE_RULES,
    EXPERTS_RULES,
    IMAGES_RULES,
    Base,
    BaseBatch,
    ExpertsBatch,
    Images,
    Start,
    count_labeled,
    finetuner,
    pretrainer,
    prototypes,
    stack_images,
    stratified,
    to_pixels,
)
from jaxmethods.merging.recipes import table
from jaxmethods.merging.recipes.diagnosis import diagnosable
from jaxmethods.merging.self_supervision import contraster
from jaxmethods.merging.static.arithmetic import average, task_arithmetic
from jaxmethods.merging.static.ties import ties
from jaxmethods.merging.static.trees import Tree, task_vectors
from jaxmethods.method import Batch, Method, State, made_once
from jaxmethods.models.clip import vit
from jaxmethods.models.clip.vit import VisionConfig
from jaxmethods.stages import (
    Arrays,
    Compute,
    Diagnosable,
    Part,
    Place,
    Recipe,
    Results,
    Train,
)


def recipe(run: Run) -> Recipe:
    """Base, experts, what adapts, and the comparison; where asked, pretraining before them.

    Raises:
        DataError: a file cannot be used; files are read here, before anything is written.
        MissingExtraError: digits are asked for and scikit-learn is not installed.
        ValueError: sizes that don't fit the data.
    """
    inputs = Inputs(run)

    def report(results: Results, folder: Path) -> None:
        seeds = range(run.seed, run.seed + run.seeds)
        sizes = {task.name: len(task.test.labels) for task in inputs.tasks}
        table.write(results["comparison"], sizes, seeds, folder)

    stages = [
        *pretraining_stages(run, inputs),
        base_stage(run, inputs),
        experts_stage(run, inputs),
        features_stage(inputs),
        adamerging_stage(run, inputs),
        wemoe_stage("wemoe", run.wemoe, run, inputs),
        wemoe_stage("ewemoe", run.ewemoe, run, inputs),
        surgery_stage(run, inputs),
        deep_surgery_stage(run, inputs),
        comparison_stage(run, inputs),
    ]
    names = ("wemoe", "ewemoe", "surgery_v2", "task_arithmetic", "individual", "base")
    headline = tuple(f"comparison/{name}_accuracy" for name in names)

    def diagnosed(results: Results, seed: int) -> Diagnosable:
        base, heads = jax.tree.map(lambda leaf: leaf[seed], results["base"])
        stack = jax.tree.map(lambda leaf: leaf[seed], results["experts"])
        tower = task_arithmetic(base.tower, stack, run.static.task_arithmetic)
        head = heads.weights[0, : inputs.classes[0]]
        frozen = base.projection, head, run.network.logit_scale
        return diagnosable(inputs.vision, tower, *frozen, inputs.train[0], inputs.tasks[0].test)

    return Recipe(stages, report, ("comparison",), headline, diagnosable=diagnosed)


ENCODED = 64
"""Test images of each task that are encoded together, and kept together."""


class Inputs:
    """What a run reads, once, and what its stages make of the states of earlier ones."""

    def __init__(self, run: Run):
        self.run = run
        self.tasks = _read(run.data)
        self.vision = vision_config(run.network, self.tasks)
        self.classes = [len(task.class_names) for task in self.tasks]
        self.train = [stratified(task.train, run.data.seed) for task in self.tasks]
        longest = max(len(task.test.labels) for task in self.tasks)
        for name in ("adamerging", "wemoe", "ewemoe", "surgery"):
            size = getattr(run, name).batch_size
            if size > longest:
                raise ValueError(
                    f"{name}.batch_size: expected at most the {longest} test images of the "
                    f"largest task, got {size}"
                )
        self.unlabeled = cache(self._unlabeled)
        self.all_train = cache(lambda: stack_images(self.train, self.classes))
        self.merged = jax.jit(jax.vmap(self._merged, (0, 0)))

    def labeled(self, start: Base | None = None) -> BaseBatch:
        """All training images, and how many of them the base may see the labels of."""
        images = self.all_train()
        return BaseBatch(images, count_labeled(images, self.run.base.labeled), start)

    def test(self) -> Images:
        """With labels: for the comparison alone."""
        return stack_images([task.test for task in self.tasks], self.classes)

    def test_pixels(self) -> tuple[np.ndarray, int]:
        """Test images [T, n, H, W, 3], n padded to whole parts, and n without padding."""
        pixels = np.asarray(self.unlabeled().inputs)
        longest = pixels.shape[1]
        return np.pad(pixels, [(0, 0), (0, -longest % ENCODED), *[(0, 0)] * 3]), longest

    def _unlabeled(self) -> Unlabeled:
        test = self.test()
        return Unlabeled(to_pixels(test.images), test.counts)

    def _merged(self, base: Base, stack: Tree) -> Tree:
        return task_arithmetic(base.tower, stack, self.run.static.task_arithmetic)


def _read(data: DataConfig) -> list[Task]:
    if data.path is not None:
        return read_tasks(data.path, data.tasks, data.image_size)
    assert data.tasks is not None
    return digit_tasks(data.tasks, seed=data.seed)


def vision_config(network: NetworkConfig, tasks: Sequence[Task]) -> VisionConfig:
    """Sizes of the tower. Raises `ValueError` where images aren't square or don't fit the patch."""
    height, width = tasks[0].train.images.shape[1:3]
    if height != width:
        raise ValueError(f"data: expected square images, got {height} x {width}")
    return VisionConfig(
        hidden_size=network.width,
        intermediate_size=4 * network.width,
        num_hidden_layers=network.depth,
        num_attention_heads=network.heads,
        image_size=height,
        patch_size=network.patch,
        projection_dim=network.features,
    )


def pretraining_stages(run: Run, inputs: Inputs) -> list[Train]:
    """The base's tower without labels, if the config has it; the result is a `Base`."""
    if run.pretraining is None:
        return []
    return [
        Train(
            "pretraining",
            made_once(contraster, inputs.vision, run.pretraining),
            run.pretraining.steps,
            lambda results: inputs.all_train(),
            result=lambda state, batch: state.base,
            layout=Layout(batch=IMAGES_RULES),
        )
    ]


def base_stage(run: Run, inputs: Inputs) -> Train:
    """The base, on the labeled share of all tasks, and the frozen heads that it makes."""
    scale = run.base.logit_scale or run.network.logit_scale

    def result(state: State, batch: BaseBatch) -> Start:
        return Start(state.base, prototypes(state.base, inputs.vision, batch.images))

    return Train(
        "base",
        made_once(pretrainer, inputs.vision, run.base, scale),
        run.base.steps,
        lambda results: inputs.labeled(results.get("pretraining")),
        result=result,
        layout=Layout(batch=BASE_RULES, per_seed=("^start/",) if run.pretraining else ()),
        main=True,
    )


def experts_stage(run: Run, inputs: Inputs) -> Train:
    """One expert for each task, all at once; the result is their stack."""
    return Train(
        "experts",
        made_once(finetuner, inputs.vision, run.experts, run.network.logit_scale),
        run.experts.steps,
        lambda results: ExpertsBatch(inputs.all_train(), *results["base"]),
        result=lambda state, batch: state.stack,
        layout=Layout(EXPERTS_RULES, EXPERTS_RULES, per_seed=("^(base|heads)/",)),
    )


def features_stage(inputs: Inputs) -> Compute:
    """What experts and task arithmetic make of every test image, for all who need it."""
    models = ("experts", "merged")

    @jax.jit
    def encode(towers: Any, projection: jax.Array, pixels: jax.Array) -> Any:
        def one(tower: Tree, projection: jax.Array, pixels: jax.Array) -> evaluate.Encoded:
            features, means = evaluate.encode(tower, projection, inputs.vision, pixels)
            return evaluate.Encoded(features, means)

        def both(towers: Any, projection: jax.Array) -> Any:
            own = jax.vmap(one, (0, None, 0))(towers["experts"], projection, pixels)
            return own, jax.vmap(one, (None, None, 0))(towers["merged"], projection, pixels)

        return jax.vmap(both)(towers, projection)

    def parts(results: Results, place: Place) -> list[Part]:
        base, stack = results["base"].base, results["experts"]
        pixels, longest = inputs.test_pixels()

        def compute(start: int) -> Arrays:
            towers = {"experts": stack, "merged": inputs.merged(base, stack)}
            layout = Layout(batch=(Rule("", ("data",)),))
            chunk = place(pixels[:, start : start + ENCODED], layout)
            found = encode(towers, base.projection, chunk)
            return {
                f"{model}.{name}": value
                for model, encoded in zip(models, found, strict=True)
                for name, value in encoded._asdict().items()
            }

        starts = range(0, longest, ENCODED)
        return [Part(f"images-{start:06d}", partial(compute, start)) for start in starts]

    def finish(found: Sequence[Arrays]) -> dict[str, evaluate.Encoded]:
        longest = inputs.test_pixels()[1]

        def joined(name: str, axis: int) -> np.ndarray:
            whole = np.concatenate([part[name] for part in found], axis)
            return whole.take(np.arange(longest), axis)

        return {
            model: evaluate.Encoded(joined(f"{model}.features", 2), joined(f"{model}.means", 3))
            for model in models
        }

    return Compute("features", parts, finish)


def adamerging_stage(run: Run, inputs: Inputs) -> Train:
    """Coefficients of task arithmetic, from unlabeled test images."""

    def data(results: Results) -> Batch:
        (base, heads), stack = results["base"], results["experts"]
        tau = jax.vmap(task_vectors)(base.tower, stack)
        tasks = heads.weights.shape[1]
        projections = jnp.repeat(base.projection[:, None], tasks, 1)
        return adamerging.Batch(base.tower, tau, inputs.unlabeled(), (heads, projections))

    return Train(
        "adamerging",
        made_once(_adapter, inputs.vision, run.adamerging, run.network.logit_scale),
        run.adamerging.steps,
        data,
        result=lambda state, batch: state.coefficients,
        layout=Layout(batch=adamerging.RULES, per_seed=("^(base|task_vectors|heads)/",)),
    )


def _adapter(vision: VisionConfig, config: AdaMergingConfig, logit_scale: float) -> Method:
    scale = jnp.log(logit_scale)

    def apply(tower: Tree, pixels: jax.Array, head: tuple[Heads, jax.Array]) -> jax.Array:
        heads, projection = head
        features = vit.forward(tower, vision, pixels, projection=projection).features
        whole = jax.tree.map(lambda leaf: leaf[None], heads)
        return classify(features[None], whole, scale)[0]

    return adamerging.adapter(apply, config)


def wemoe_stage(name: str, config: WEMoEConfig, run: Run, inputs: Inputs) -> Train:
    """The stage that trains routers, on unlabeled test images.

    Args:
        name: of the stage.
        config: WEMoE's or E-WEMoE's.
        run: the run's config.
        inputs: the images.

    Returns:
        A stage with trained routers for its result; it takes those of "base" and "experts".
    """

    def data(results: Results) -> Batch:
        (base, heads), stack = results["base"], results["experts"]
        model = jax.vmap(partial(wemoe.upcycle, config=config))(base.tower, stack)
        scale = jnp.log(jnp.float32(run.network.logit_scale))
        return wemoe.Batch(model, inputs.unlabeled(), heads, base.projection, scale)

    return Train(
        name,
        made_once(wemoe.adapter, inputs.vision, config),
        config.steps,
        data,
        result=lambda state, batch: state.routers,
        layout=Layout(batch=wemoe.RULES, per_seed=("^(model|heads)/", "^projection$")),
    )


def surgery_stage(run: Run, inputs: Inputs) -> Train:
    """Corrections of task arithmetic's features."""

    def data(results: Results) -> Batch:
        merged, experts = (results["features"][model] for model in ("merged", "experts"))
        counts = inputs.unlabeled().counts
        counts = jnp.broadcast_to(counts, (run.seeds, *counts.shape))
        targets = surgery.Targets(experts.features)
        return surgery.Batch(Unlabeled(merged.features, counts), targets)

    config = run.surgery.model_copy(update={"deep": False})
    return Train(
        "surgery",
        made_once(surgery.aligner, config),
        run.surgery.steps,
        data,
        result=lambda state, batch: state.modules,
        layout=Layout(surgery.RULES, surgery.RULES, per_seed=("",)),
    )


def deep_surgery_stage(run: Run, inputs: Inputs) -> Train:
    """Corrections of task arithmetic after every block and of its features."""

    def data(results: Results) -> Batch:
        base, stack = results["base"].base, results["experts"]
        features, means = results["features"]["experts"]
        targets = surgery.Targets(features, means.swapaxes(2, 3))  # [S, T, n, N, D]
        model = inputs.merged(base, stack), base.projection
        return surgery.Batch(inputs.unlabeled(), targets, model)

    config = run.surgery.model_copy(update={"deep": True})
    return Train(
        "surgery_v2",
        made_once(_deep_aligner, inputs.vision, config),
        run.surgery.steps,
        data,
        result=lambda state, batch: state.modules,
        layout=Layout(surgery.RULES, surgery.RULES, per_seed=("^(targets|model)/",)),
    )


def _deep_aligner(vision: VisionConfig, config: SurgeryConfig) -> Method:
    def encode(model: Any, pixels: jax.Array, after: Any, corrections: Any) -> Any:
        hooks = vit.Hooks(after=after)
        tower, projection = model
        options = {"hooks": hooks, "per_layer": corrections}
        return evaluate.encode(tower, projection, vision, pixels, **options)

    return surgery.aligner(config, encode)


def comparison_stage(run: Run, inputs: Inputs) -> Compute:
    """The table: every method on every test set."""
    routed = {"wemoe": run.wemoe, "ewemoe": run.ewemoe}
    sizes = run.evaluation.batch_size, run.network.logit_scale

    def parts(results: Results, place: Place) -> list[Part]:
        def compute() -> Arrays:
            layout = Layout(batch=evaluate.RULES, per_seed=evaluate.PER_SEED)
            batch = place(contestants(run, inputs, results), layout)
            axes = seed_axes(batch, layout.per_seed)

            def one(batch: evaluate.Contestants) -> evaluate.Results:
                return evaluate.measure(batch, inputs.vision, routed, *sizes)

            accuracy, distance, routing = jax.jit(jax.vmap(one, (axes,)))(batch)
            return {"accuracy": accuracy, "distance": distance, **routing}

        return [Part("all", compute)]

    def finish(found: Sequence[Arrays]) -> evaluate.Results:
        (part,) = found
        routing = {name: part[name] for name in evaluate.ROUTED}
        return evaluate.Results(part["accuracy"], part["distance"], routing)

    return Compute("comparison", parts, finish, evaluate.metrics)


def contestants(run: Run, inputs: Inputs, results: Results) -> evaluate.Contestants:
    """All models, each with a leading seed axis, from the results of the earlier stages."""
    (base, heads), stack = results["base"], results["experts"]
    configs = {"wemoe": run.wemoe, "ewemoe": run.ewemoe}

    def merge(base: Base, stack: Tree, coefficients: Any) -> Tree:
        tau = task_vectors(base.tower, stack)
        batch: Any = adamerging.Batch(base.tower, tau, None, None)  # type: ignore[arg-type]
        merges = {
            "average": average(stack),
            "task_arithmetic": task_arithmetic(base.tower, stack, run.static.task_arithmetic),
            "ties": ties(
                base.tower, stack, density=run.static.ties_density, coefficients=run.static.ties
            ),
            "adamerging": adamerging.merged(coefficients, batch, run.adamerging),
        }
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *[merges[m] for m in evaluate.PLAIN])

    def route(name: str, base: Base, stack: Tree, routers: Any) -> Any:
        config = configs[name]
        return wemoe.upcycle(base.tower, stack, config), wemoe.prune_routers(routers, config)

    return evaluate.Contestants(
        test=inputs.test(),
        base=base,
        heads=heads,
        experts=results["features"]["experts"],
        merged=results["features"]["merged"],
        plain=jax.jit(jax.vmap(merge))(base, stack, results["adamerging"]),
        routed={
            name: jax.vmap(partial(route, name))(base, stack, results[name])
            for name in evaluate.ROUTED
        },
        surgery=results["surgery"],
        surgery_v2=results["surgery_v2"],
    )
