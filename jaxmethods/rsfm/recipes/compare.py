"""`method: rsfm` on the command line: pretrain an encoder and compare it with what is simpler.

Stages: `pretrain`, an encoder by the objective that `model.objective` names; `features`, frozen
features of all images by everything that is compared; `comparison`, predictions by every preset;
`retrieval`, images found by images; on generated scenes `dense`, maps of land cover and of change
by linear heads, and `objects`, buildings found on those maps; with `finetune.shots`,
`labels`, what a few labels are worth; `painted`, what a masked autoencoder makes of some images;
`zero_shot`, classes by their captions where captions were learned. With `data.scene` see `scene`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.models.geovit import Context, EncoderConfig, encode, init, pool
from jaxmethods.numerics.keys import named
from jaxmethods.numerics.statistics import standard_error
from jaxmethods.rsfm.config import ImageTextConfig, MAEConfig, Run
from jaxmethods.rsfm.evaluation.protocols import Split, judge
from jaxmethods.rsfm.recipes import (
    dense,
    encoders,
    labels,
    objectives,
    objects,
    report,
    retrieval,
    scene,
    zero_shot,
)
from jaxmethods.rsfm.recipes.diagnosis import MOST, diagnosable
from jaxmethods.rsfm.recipes.material import PARTS, Material, read_material
from jaxmethods.stages import Arrays, Compute, Diagnosable, Part, Recipe, Results

WIDTHS = 64
CONTROL = "permuted_labels"
"""Statistics of the pixels, learned with the labels of other images: no more than chance."""
JUDGES = ("probe", "neighbors")
PERMUTATIONS = 4
"""Images of a class look alike and are named alike, so one permutation is off by some points."""


def recipe(run: Run) -> Recipe:
    """Pretraining, features, comparison, maps and what was painted.

    Raises:
        UserError: what is wrong with images or config, before anything is trained.
    """
    if run.data.scene is not None:
        return _scene(run)
    material = read_material(run)
    config = objectives.pretraining_config(run, material)
    encoder = objectives.encoder_config(run, material)
    stages: list[Any] = [objectives.stage(run, material, config)]
    stages += [_features(run, material, encoder), _comparison(run, material)]
    stages.append(retrieval.stage(run, material))
    if material.scenes is not None and run.evaluation.segmentation_steps:
        stages += [dense.stage(run, material, encoder), objects.stage(run, material)]
    if run.finetune.shots:
        stages.append(labels.stage(run, material, encoder))
    diagnosed = None
    if isinstance(config, MAEConfig) and run.model.objective == "mae":
        stages.append(report.painted_stage(run, material, config))
        diagnosed = partial(_diagnosed, run, config, material)
    if isinstance(config, ImageTextConfig):
        stages.append(zero_shot.stage(run, material, config))
    how, preset = run.evaluation.poolings[-1], run.evaluation.presets[0]
    shown = [("mae", how), ("random_encoder", how), *((name, "") for name in encoders.FIXED)]
    headline = [
        f"comparison/{_label(encoders.shown(run, name), own, preset, 'probe')}"
        for name, own in shown
    ]
    reads = [stage.name for stage in stages[2:]]
    return Recipe(
        stages,
        partial(report.write, run, material),
        reads=reads,
        headline=headline,
        ready=partial(_ready, encoder, material),
        diagnosable=diagnosed,
    )


def _scene(run: Run) -> Recipe:
    """Pretraining on a real scene's tiles, and its map."""
    own, material = scene.read_tiles(run)
    config = objectives.pretraining_config(run, material)
    encoder = objectives.encoder_config(run, material)
    return Recipe(
        [
            objectives.stage(run, material, config),
            scene.stage(run, own, material, encoder),
        ],
        partial(scene.write, run, own),
        reads=[scene.STAGE],
        headline=[f"{scene.STAGE}/{model}_{head}_miou" for model, head in scene.ROWS],
        ready=partial(_ready, encoder, material),
    )


def random_encoder(run: Run, config: EncoderConfig, seed: int) -> Any:
    """An encoder of the same architecture that nothing was taught."""
    return init(named(jax.random.key(run.seed + seed), "random_encoder"), config)


def _features(run: Run, material: Material, config: EncoderConfig) -> Compute:
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
            return encoders.encoder_features(params, config, run, material)

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
    rows.append((CONTROL, "", own.presets[0]))
    return rows + [
        (f"{name}-{seed}", how, preset)
        for name in encoders.ENCODERS
        for how in own.poolings
        for preset in own.presets
        for seed in range(run.seeds)
    ]


def _comparison(run: Run, material: Material) -> Compute:
    rows = rows_of(run)

    labels_of = {part: material.labels[material.parts[part]] for part in PARTS}
    truth = labels_of["test"]

    def judged(features: Mapping[str, Any], row: tuple[str, str, str], labels: Any) -> Arrays:
        name, how, preset = row
        splits = [
            Split(
                _widened(features[name][f"{part}.{how}" if how else part]),
                jnp.asarray(labels[part]),
            )
            for part in PARTS
        ]
        found = judge(preset, *splits, classes=len(material.class_names))
        return {
            "neighbors": np.asarray(found.neighbors) == truth,
            "probe": np.asarray(found.probe) == truth,
            "setting": np.float32(found.setting),
            "k": np.int32(found.k),
        }

    def compute(features: Mapping[str, Any], row: tuple[str, str, str]) -> Arrays:
        name, how, preset = row
        if name != CONTROL:
            return judged(features, row, labels_of)
        rng, found = np.random.default_rng(run.seed), []
        for _ in range(PERMUTATIONS):
            mixed = {part: rng.permutation(labels_of[part]) for part in PARTS[:2]}
            found.append(judged(features, ("imagestats", how, preset), labels_of | mixed))
        shares = {what: np.mean([own[what] for own in found], 0) for what in JUDGES}
        return found[0] | shares

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
    """With columns of zeros to a multiple of 64: nobody's distance or optimum changes, and
    features of different widths share a program."""
    return jnp.asarray(np.pad(features, ((0, 0), (0, -features.shape[1] % WIDTHS))))


def _call(
    compute: Callable[[Mapping[str, Any], tuple[str, str, str]], Arrays],
    results: Results,
    row: tuple[str, str, str],
) -> Callable[[], Arrays]:
    return lambda: compute(results["features"], row)


def accuracies(run: Run, found: Mapping[Any, Arrays]) -> dict[str, np.ndarray]:
    """Name to shares of test images that are right, one or [seeds]; NAME_error to that of one."""
    first = run.evaluation.presets[0]
    control = found[CONTROL, "", first]["probe"]
    metrics = {_label(CONTROL, first, "probe"): np.array(np.mean(control))}
    for name in (*encoders.FIXED, *encoders.ENCODERS):
        seeds: Sequence[str] = [name]
        if name in encoders.ENCODERS:
            seeds = [f"{name}-{seed}" for seed in range(run.seeds)]
        for how in run.evaluation.poolings if name in encoders.ENCODERS else ("",):
            for preset in run.evaluation.presets:
                for judged in JUDGES:
                    right = [found[own, how, preset][judged] for own in seeds]
                    label = _label(encoders.shown(run, name), how, preset, judged)
                    metrics[label] = np.mean(right, axis=-1).squeeze()
                    if len(right) == 1:
                        metrics[f"{label}_error"] = standard_error(np.asarray(right[0], float))
    return metrics


def _label(*parts: str) -> str:
    """Name, pooling, preset and judge as one name."""
    return "_".join(filter(None, parts)).replace("+", "_and_")


def _diagnosed(
    run: Run, config: MAEConfig, material: Material, results: Results, seed: int
) -> Diagnosable:
    sets = (material.parts[part][:MOST] for part in ("train", "test"))
    train, test = (objectives.pixels(run, material, rows) for rows in sets)
    key = named(jax.random.key(run.seed + seed), "diagnosis")
    params = encoders.one_seed(results, "pretrain", seed)
    return diagnosable(config, params, train, test, key)


def _ready(
    config: EncoderConfig, material: Material, results: Results, seed: int
) -> Callable[..., jax.Array]:
    params = encoders.one_seed(results, "pretrain", seed)["encoder"]
    mean, std = material.statistics.mean, material.statistics.std

    def features(images: jax.Array, gsd: jax.Array | None = None) -> jax.Array:
        """Class token and mean of the patch tokens [B, 2 D] of images [B, H, W, C], as they were
        read; `gsd` [B] is needed where positions are on the ground."""
        wide = (jnp.asarray(images, jnp.float32) - mean) / std
        encoded = encode(params, config, wide, Context(gsd=gsd))
        return pool(params, config, encoded, "cls+mean")

    return features
