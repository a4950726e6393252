"""`method: rsfm` on the command line: pretrain an encoder and compare it with what is simpler.

Stages: `pretrain`, a masked autoencoder; `features`, frozen features of all images by everything
that is compared; `comparison`, predictions by every preset; on generated scenes `dense`, maps of
land cover and of change by linear heads; `painted`, what the autoencoder makes of some images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.layout import Layout, Rule
from jaxmethods.method import Method
from jaxmethods.models.geovit import Context, encode, init, pool
from jaxmethods.numerics.keys import named
from jaxmethods.rsfm.config import MAEConfig, Run
from jaxmethods.rsfm.evaluation.protocols import Split, judge
from jaxmethods.rsfm.pretraining.method import Pixels, State, held_out_loss, pretrainer
from jaxmethods.rsfm.recipes import dense, encoders, report
from jaxmethods.rsfm.recipes.diagnosis import MOST, diagnosable
from jaxmethods.rsfm.recipes.material import PARTS, Material, read_material
from jaxmethods.stages import Arrays, Compute, Diagnosable, Evaluation, Part, Recipe, Results, Train

WIDTHS = 128
HELD_OUT = 256
"""Test images at most on which the loss of pretraining is taken."""


class Fed(NamedTuple):
    """What pretraining is fed."""

    data: Pixels
    held_out: Pixels


def recipe(run: Run) -> Recipe:
    """Pretraining, features, comparison, maps and what was painted.

    Raises:
        UserError: what is wrong with images or config, before anything is trained.
    """
    material = read_material(run)
    config = encoders.model_config(run, material)
    stages: list[Any] = [_pretrain(run, material, config)]
    stages += [_features(run, material, config), _comparison(run, material)]
    if material.scenes is not None and run.evaluation.segmentation_steps:
        stages.append(dense.stage(run, material, config.encoder))
    stages.append(report.painted_stage(run, material, config))
    how, preset = run.evaluation.poolings[-1], run.evaluation.presets[0]
    shown = [("mae", how), ("random_encoder", how), *((name, "") for name in encoders.FIXED)]
    headline = [f"comparison/{_label(name, own, preset, 'probe')}" for name, own in shown]
    reads = [stage.name for stage in stages[2:]]
    return Recipe(
        stages,
        partial(report.write, run, material),
        reads=reads,
        headline=headline,
        ready=partial(_ready, config, material),
        diagnosable=partial(_diagnosed, run, config, material),
    )


def _pretrain(run: Run, material: Material, config: MAEConfig) -> Train:
    own = pretrainer(config, run.pretrain)
    objective = own.objective
    assert objective is not None
    method = Method(
        lambda key, fed: own.init(key, fed.data),
        lambda state, fed: own.step(state, fed.data),
        lambda state, fed: objective(state, fed.data),
    )

    def data(results: Results) -> Fed:
        del results
        learned = _pixels(material, material.parts["train"])
        slots = np.arange(run.pretrain.batch, dtype=np.int32)
        held_out = _pixels(material, material.parts["test"][:HELD_OUT])
        return Fed(learned._replace(slots=slots), held_out)  # type: ignore[arg-type]

    def measure(state: State, fed: Fed, key: jax.Array) -> dict[str, jax.Array]:
        loss = held_out_loss(state.params, config, run.pretrain, fed.held_out, key)
        return {"held_out_loss": loss}

    return Train(
        "pretrain",
        method,
        run.pretrain.steps,
        data,
        result=lambda state, fed: state.params,
        evaluation=Evaluation(measure),
        layout=Layout(
            state=[Rule(r"(fc1|q_proj|k_proj|v_proj)/weight$", (None, "fsdp"))],
            batch=[Rule("slots$", ("data",))],
        ),
        main=True,
    )


def _pixels(material: Material, rows: np.ndarray) -> Pixels:
    scenes = material.scenes
    arrays: Any = (
        material.images[rows],
        material.statistics.mean.astype(np.float32),
        material.statistics.std.astype(np.float32),
        None if material.valid is None else material.valid[rows],
        None if scenes is None else np.full(len(rows), scenes.gsd, np.float32),
    )
    return Pixels(*arrays)


def random_encoder(run: Run, config: MAEConfig, seed: int) -> Any:
    """An encoder of the same architecture that nothing was taught."""
    return init(named(jax.random.key(run.seed + seed), "random_encoder"), config.encoder)


def _features(run: Run, material: Material, config: MAEConfig) -> Compute:
    def parts(results: Results, place: Any) -> list[Part]:
        del place
        made = [
            Part(name, partial(encoders.fixed_features, name, run, material))
            for name in encoders.FIXED
        ]

        def compute(name: str, seed: int) -> Arrays:
            if name == "mae":
                params = encoders.one_seed(results, "pretrain", seed)["encoder"]
            else:
                params = random_encoder(run, config, seed)
            return encoders.encoder_features(params, config.encoder, run, material)

        for name in encoders.ENCODERS:
            made += [
                Part(f"{name}-{seed}", partial(compute, name, seed)) for seed in range(run.seeds)
            ]
        return made

    names = [*encoders.FIXED]
    names += [f"{name}-{seed}" for name in encoders.ENCODERS for seed in range(run.seeds)]
    return Compute("features", parts, lambda found: dict(zip(names, found, strict=True)))


def rows_of(run: Run) -> list[tuple[str, str, str]]:
    """The table's rows: (name in the features, pooling or "", preset)."""
    own = run.evaluation
    rows = [(name, "", preset) for name in encoders.FIXED for preset in own.presets]
    return rows + [
        (f"{name}-{seed}", how, preset)
        for name in encoders.ENCODERS
        for how in own.poolings
        for preset in own.presets
        for seed in range(run.seeds)
    ]


def _comparison(run: Run, material: Material) -> Compute:
    rows = rows_of(run)

    def compute(features: Mapping[str, Any], row: tuple[str, str, str]) -> Arrays:
        name, how, preset = row
        splits = [
            Split(
                _widened(features[name][f"{part}.{how}" if how else part]),
                jnp.asarray(material.labels[material.parts[part]]),
            )
            for part in PARTS
        ]
        found = judge(preset, *splits, classes=len(material.class_names))
        truth = np.asarray(splits[2].labels)
        return {
            "neighbors": np.asarray(found.neighbors) == truth,
            "probe": np.asarray(found.probe) == truth,
            "setting": np.float32(found.setting),
            "k": np.int32(found.k),
        }

    def parts(results: Results, place: Any) -> list[Part]:
        del place
        return [Part(_label(*row), _call(compute, results, row)) for row in rows]

    return Compute(
        "comparison",
        parts,
        lambda found: dict(zip(rows, found, strict=True)),
        metrics=lambda found: accuracies(run, found),
    )


def _widened(features: np.ndarray) -> jax.Array:
    """With columns of zeros to a multiple of 128: nobody's distance or optimum changes, and
    features of different widths share a program."""
    return jnp.asarray(np.pad(features, ((0, 0), (0, -features.shape[1] % WIDTHS))))


def _call(
    compute: Callable[[Mapping[str, Any], tuple[str, str, str]], Arrays],
    results: Results,
    row: tuple[str, str, str],
) -> Callable[[], Arrays]:
    return lambda: compute(results["features"], row)


def accuracies(run: Run, found: Mapping[Any, Arrays]) -> dict[str, np.ndarray]:
    """Name to shares of test images that are right, one or [seeds]."""
    metrics: dict[str, np.ndarray] = {}
    for name in (*encoders.FIXED, *encoders.ENCODERS):
        seeds: Sequence[str] = [name]
        if name in encoders.ENCODERS:
            seeds = [f"{name}-{seed}" for seed in range(run.seeds)]
        for how in run.evaluation.poolings if name in encoders.ENCODERS else ("",):
            for preset in run.evaluation.presets:
                for judged in ("probe", "neighbors"):
                    values = [np.mean(found[own, how, preset][judged]) for own in seeds]
                    single = len(values) == 1
                    label = _label(name, how, preset, judged)
                    metrics[label] = np.array(values[0] if single else values)
    return metrics


def _label(*parts: str) -> str:
    """Name, pooling, preset and judge as one name."""
    return "_".join(filter(None, parts)).replace("+", "_and_")


def _diagnosed(
    run: Run, config: MAEConfig, material: Material, results: Results, seed: int
) -> Diagnosable:
    train, test = (_pixels(material, material.parts[part][:MOST]) for part in ("train", "test"))
    key = named(jax.random.key(run.seed + seed), "diagnosis")
    params = encoders.one_seed(results, "pretrain", seed)
    return diagnosable(config, params, train, test, key)


def _ready(
    config: MAEConfig, material: Material, results: Results, seed: int
) -> Callable[..., jax.Array]:
    params = encoders.one_seed(results, "pretrain", seed)["encoder"]
    mean, std = material.statistics.mean, material.statistics.std

    def features(images: jax.Array, gsd: jax.Array | None = None) -> jax.Array:
        """Class token and mean of the patch tokens [B, 2 D] of images [B, H, W, C], as they were
        read; `gsd` [B] is needed where positions are on the ground."""
        wide = (jnp.asarray(images, jnp.float32) - mean) / std
        encoded = encode(params, config.encoder, wide, Context(gsd=gsd))
        return pool(params, config.encoder, encoded, "cls+mean")

    return features
