"""Merging on the command line: from image tasks to a table of methods.

A base learns from few labels, one expert for each task starts from it, the experts are merged by
every method, and the models are compared on the test sets. What adapts at test time is given the
test images and never a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from jaxmethods.config import Config, OnResume, RunConfig
from jaxmethods.data.images import Task, digit_tasks, read_tasks
from jaxmethods.merging import adamerging, evaluate, surgery, table, wemoe
from jaxmethods.merging.adaptation import Heads, Unlabelled, classify
from jaxmethods.merging.arithmetic import average, task_arithmetic
from jaxmethods.merging.config import (
    AdaMergingConfig,
    Fraction,
    PositiveInt,
    SurgeryConfig,
    WEMoEConfig,
)
from jaxmethods.merging.finetuning import (
    BASE_RULES,
    EXPERTS_RULES,
    Base,
    BaseBatch,
    BaseConfig,
    ExpertsBatch,
    ExpertsConfig,
    Images,
    count_labelled,
    finetuner,
    pretrainer,
    prototypes,
    stack_images,
    stratified,
    to_pixels,
)
from jaxmethods.merging.sign_election import ties
from jaxmethods.merging.trees import Tree, task_vectors
from jaxmethods.method import Batch, Stage, State
from jaxmethods.models import vit
from jaxmethods.models.vit import VisionConfig


class DataConfig(Config):
    """The tasks: files, or made of scikit-learn's digits."""

    path: Path | None = None
    """Folder that holds an npz file `NAME.npz` or a folder of image files `NAME/train/CLASS/*.png`,
    `NAME/test/CLASS/*.png` for each task, see `jaxmethods.data.images`."""
    tasks: tuple[str, ...] | None = None
    """Of files without `.npz`, of folders, or of `images.DIGIT_TASKS`; null: all there are."""
    image_size: PositiveInt | None = None
    """Height and width: image files are resized (shorter side, bicubic, then the middle), npz
    files must have it. null: as the files are, all of one size."""
    generate: Literal["digits"] | None = None
    """Instead of files: tasks made of digits."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of the order of the training images, and with it of which are labelled for the base."""

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if (self.path is None) == (self.generate is None):
            raise ValueError("path: expected either a folder or `generate`")
        if self.generate is not None and not self.tasks:
            raise ValueError("tasks: expected some with `generate`, got none")
        if self.generate is not None and self.image_size is not None:
            raise ValueError("image_size: expected null with `generate`")
        return self


class NetworkConfig(Config):
    """The vision transformer; its images are those of the data."""

    width: PositiveInt = 128
    depth: PositiveInt = 4
    heads: PositiveInt = 4
    patch: PositiveInt = 8
    features: PositiveInt = 128
    """P, width of the projected features."""
    logit_scale: Annotated[float, Field(gt=0.0)] = 20.0
    """exp(s), what cosines are multiplied by."""


class StaticConfig(Config):
    """Merges that need nothing but the experts."""

    task_arithmetic: float = 0.3
    ties: float = 0.3
    ties_density: Fraction = 0.2


class AdaMergingRunConfig(AdaMergingConfig):
    """AdaMerging of the table."""

    steps: Annotated[PositiveInt, OnResume.GROW] = 500


class SurgeryRunConfig(SurgeryConfig):
    """Both surgeries of the table: `deep` is set for each."""

    steps: Annotated[PositiveInt, OnResume.GROW] = 1000


class EvaluationConfig(Config):
    """The comparison at the end."""

    batch_size: PositiveInt = 128
    """Test images of each task that are encoded, and in batch routing routed, together."""


class Run(RunConfig):
    """From tasks to a table."""

    method: Literal["merging"]
    data: DataConfig
    network: NetworkConfig = NetworkConfig()
    base: BaseConfig = BaseConfig()
    experts: ExpertsConfig = ExpertsConfig()
    static: StaticConfig = StaticConfig()
    adamerging: AdaMergingRunConfig = AdaMergingRunConfig()
    wemoe: WEMoEConfig = WEMoEConfig()
    ewemoe: WEMoEConfig = WEMoEConfig(prune=0.9, shared_router=True, schedule="constant")
    surgery: SurgeryRunConfig = SurgeryRunConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


def stages(run: Run) -> list[Stage]:
    """Base, experts, what adapts, and the comparison.

    Raises:
        DataError: a file cannot be used; files are read here, before anything is written.
        MissingExtraError: digits are asked for and scikit-learn is not installed.
        ValueError: sizes that don't fit the data.
    """
    inputs = Inputs(run)
    return [
        base_stage(run, inputs),
        experts_stage(run, inputs),
        adamerging_stage(run, inputs),
        wemoe_stage("wemoe", run.wemoe, run, inputs),
        wemoe_stage("ewemoe", run.ewemoe, run, inputs),
        surgery_stage(run, inputs),
        deep_surgery_stage(run, inputs),
        comparison_stage(run, inputs),
    ]


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
        self.unlabelled = cache(self._unlabelled)
        self.all_train = cache(lambda: stack_images(self.train, self.classes))
        self.heads = jax.jit(jax.vmap(self._heads, (0, None)))
        self.merged = jax.jit(jax.vmap(self._merged, (0, 0)))

    def labelled(self) -> BaseBatch:
        """All training images, and how many of them the base may see the labels of."""
        images = self.all_train()
        return BaseBatch(images, count_labelled(images, self.run.base.labelled))

    def test(self) -> Images:
        """With labels: for the comparison alone."""
        return stack_images([task.test for task in self.tasks], self.classes)

    def _unlabelled(self) -> Unlabelled:
        test = self.test()
        return Unlabelled(to_pixels(test.images), test.counts)

    def _heads(self, base: Base, images: Images) -> Heads:
        return prototypes(base, self.vision, images)

    def _merged(self, base: Base, stack: Tree) -> Tree:
        return task_arithmetic(base.tower, stack, self.run.static.task_arithmetic)

    def experts(self, finished: Sequence[State]) -> tuple[Base, Tree, Heads]:
        """Base, stack and heads, each with a leading seed axis."""
        base = finished[0].base
        return base, finished[1].stack, self.heads(base, self.all_train())


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


def base_stage(run: Run, inputs: Inputs) -> Stage:
    """The base, on the labelled share of all tasks."""
    scale = run.base.logit_scale or run.network.logit_scale
    return Stage(
        "base",
        pretrainer(inputs.vision, run.base, scale),
        run.base.steps,
        lambda finished: inputs.labelled(),
        batch_rules=BASE_RULES,
    )


def experts_stage(run: Run, inputs: Inputs) -> Stage:
    """One expert for each task, all at once."""

    def data(finished: Sequence[State]) -> Batch:
        base = finished[0].base
        images = inputs.all_train()
        return ExpertsBatch(images, base, inputs.heads(base, images))

    return Stage(
        "experts",
        finetuner(inputs.vision, run.experts, run.network.logit_scale),
        run.experts.steps,
        data,
        rules=EXPERTS_RULES,
        batch_rules=EXPERTS_RULES,
        batch_axes=ExpertsBatch(None, 0, 0),  # type: ignore[arg-type]
    )


def adamerging_stage(run: Run, inputs: Inputs) -> Stage:
    """Coefficients of task arithmetic, from unlabelled test images."""
    scale = jnp.log(run.network.logit_scale)

    def apply(tower: Tree, pixels: jax.Array, head: tuple[Heads, jax.Array]) -> jax.Array:
        heads, projection = head
        features = vit.forward(tower, inputs.vision, pixels, projection=projection).features
        whole = jax.tree.map(lambda leaf: leaf[None], heads)
        return classify(features[None], whole, scale)[0]

    def data(finished: Sequence[State]) -> Batch:
        base, stack, heads = inputs.experts(finished)
        tau = jax.vmap(task_vectors)(base.tower, stack)
        tasks = heads.weights.shape[1]
        projections = jnp.repeat(base.projection[:, None], tasks, 1)
        return adamerging.Batch(base.tower, tau, inputs.unlabelled(), (heads, projections))

    return Stage(
        "adamerging",
        adamerging.adapter(apply, run.adamerging),
        run.adamerging.steps,
        data,
        batch_rules=adamerging.RULES,
        batch_axes=adamerging.Batch(0, 0, None, 0),  # type: ignore[arg-type]
    )


def wemoe_stage(name: str, config: WEMoEConfig, run: Run, inputs: Inputs) -> Stage:
    """Routers, from unlabelled test images."""

    def data(finished: Sequence[State]) -> Batch:
        base, stack, heads = inputs.experts(finished)
        model = jax.vmap(partial(wemoe.upcycle, config=config))(base.tower, stack)
        scale = jnp.log(jnp.float32(run.network.logit_scale))
        return wemoe.Batch(model, inputs.unlabelled(), heads, base.projection, scale)

    return Stage(
        name,
        wemoe.adapter(inputs.vision, config),
        config.steps,
        data,
        batch_rules=wemoe.RULES,
        batch_axes=wemoe.Batch(0, None, 0, 0, None),  # type: ignore[arg-type]
    )


def surgery_stage(run: Run, inputs: Inputs) -> Stage:
    """Corrections of task arithmetic's features."""

    def data(finished: Sequence[State]) -> Batch:
        base, stack, _ = inputs.experts(finished)
        merged, images = inputs.merged(base, stack), inputs.unlabelled()
        seeds = len(base.projection)
        features, _ = _encode_seeds(inputs.vision, merged, base.projection, images.inputs)
        targets, _ = _encode_seeds(inputs.vision, stack, base.projection, images.inputs)
        counts = jnp.broadcast_to(images.counts, (seeds, *images.counts.shape))
        return surgery.Batch(Unlabelled(features, counts), surgery.Targets(targets))

    config = run.surgery.model_copy(update={"deep": False})
    return Stage(
        "surgery",
        surgery.aligner(config),
        run.surgery.steps,
        data,
        rules=surgery.RULES,
        batch_axes=0,
        batch_rules=surgery.RULES,
    )


def deep_surgery_stage(run: Run, inputs: Inputs) -> Stage:
    """Corrections of task arithmetic after every block and of its features."""

    def encode(model: Any, pixels: jax.Array, after: Any, corrections: Any) -> Any:
        hooks = vit.Hooks(after=after)
        tower, projection = model
        options = {"hooks": hooks, "per_layer": corrections}
        return evaluate.encode(tower, projection, inputs.vision, pixels, **options)

    def data(finished: Sequence[State]) -> Batch:
        base, stack, _ = inputs.experts(finished)
        images = inputs.unlabelled()
        targets = _encode_seeds(inputs.vision, stack, base.projection, images.inputs)
        model = inputs.merged(base, stack), base.projection
        return surgery.Batch(images, surgery.Targets(*targets), model)

    config = run.surgery.model_copy(update={"deep": True})
    return Stage(
        "surgery_v2",
        surgery.aligner(config, encode),
        run.surgery.steps,
        data,
        rules=surgery.RULES,
        batch_rules=surgery.RULES,
        batch_axes=surgery.Batch(None, 0, 0),  # type: ignore[arg-type]
    )


def comparison_stage(run: Run, inputs: Inputs) -> Stage:
    """The table: every method on every test set, in one step."""
    routed = {"wemoe": run.wemoe, "ewemoe": run.ewemoe}

    def data(finished: Sequence[State]) -> Batch:
        return contestants(run, inputs, finished)

    def export(states: State, folder: Path) -> None:
        names = [task.name for task in inputs.tasks]
        seeds = range(run.seed, run.seed + run.seeds)
        table.write(states, names, seeds, folder)

    method = evaluate.tester(
        inputs.vision, routed, run.evaluation.batch_size, run.network.logit_scale
    )
    axes = evaluate.Contestants(None, 0, 0, 0, 0, 0, 0, 0)  # type: ignore[arg-type]
    return Stage(
        "comparison",
        method,
        1,
        data,
        judge=evaluate.judge,
        export=export,
        batch_axes=axes,
        batch_rules=evaluate.RULES,
    )


def contestants(run: Run, inputs: Inputs, finished: Sequence[State]) -> evaluate.Contestants:
    """All models, each with a leading seed axis, from the states of the earlier stages."""
    base, stack, heads = inputs.experts(finished)
    adapted, *routers, corrections, deep = finished[2:]
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
        stack=stack,
        heads=heads,
        plain=jax.jit(jax.vmap(merge))(base, stack, adapted.coefficients),
        routed={
            name: jax.vmap(partial(route, name))(base, stack, state.routers)
            for name, state in zip(evaluate.ROUTED, routers, strict=True)
        },
        surgery=corrections.modules,
        surgery_v2=deep.modules,
    )


def _encode_seeds(
    vision: VisionConfig, towers: Tree, projection: jax.Array, pixels: jax.Array, chunk: int = 64
) -> tuple[jax.Array, jax.Array]:
    """Features [S, T, n, P] and token means [S, T, n, N, D] of pixels [T, n, H, W, 3].

    Args:
        towers: [S, ...], one for all tasks, or [S, T, ...].
    """
    single = towers["pre_layrnorm"]["weight"].ndim == 2
    longest = pixels.shape[1]

    @jax.jit
    def run(towers: Tree, projection: jax.Array, pixels: jax.Array) -> Any:
        def one(tower: Tree, projection: jax.Array, pixels: jax.Array) -> Any:
            features, means = evaluate.encode(tower, projection, vision, pixels)
            return features, means.swapaxes(0, 1)

        tasks = jax.vmap(one, (None if single else 0, None, 0))
        return jax.vmap(tasks, (0, 0, None))(towers, projection, pixels)

    padded = jnp.pad(pixels, [(0, 0), (0, -longest % chunk), *[(0, 0)] * 3])
    parts = [
        run(towers, projection, padded[:, start : start + chunk])
        for start in range(0, padded.shape[1], chunk)
    ]
    features, means = (np.concatenate(part, 2)[:, :, :longest] for part in zip(*parts, strict=True))
    return jnp.asarray(features), jnp.asarray(means)
