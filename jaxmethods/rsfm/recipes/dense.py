"""Maps of land cover and of change on generated scenes, by linear heads on frozen tokens.

The raw pixels of patches are the control: what a head makes of them needs no encoder. Change is
read from the difference of the tokens of two dates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.data.earth.scenes import CLASSES, Scenes
from jaxmethods.models.geovit import EncoderConfig, init
from jaxmethods.models.geovit.patches import patchify
from jaxmethods.numerics.keys import named
from jaxmethods.numerics.predictions import chosen
from jaxmethods.rsfm.config import Run
from jaxmethods.rsfm.evaluation.measures import segmentation
from jaxmethods.rsfm.evaluation.segmenter import fit_segmenter, segment
from jaxmethods.rsfm.recipes import encoders
from jaxmethods.rsfm.recipes.material import Material
from jaxmethods.stages import Arrays, Compute, Part, Results

STAGE = "dense"
TASKS = {"cover": len(CLASSES), "change": 2}
MAPS_KEPT = 256
"""Test scenes at most whose maps are kept, for the figure and for objects on them."""


def stage(run: Run, material: Material, config: EncoderConfig) -> Compute:
    """Heads on raw pixels, on a random encoder and on the pretrained one.

    Args:
        run: the config.
        material: with scenes.
        config: of the encoder.

    Returns:
        The stage; its result is "MODEL-TASK" to confusion matrix and maps.
    """
    models = ["pixels"]
    models += [f"{name}-{seed}" for name in encoders.ENCODERS for seed in range(run.seeds)]
    names = [f"{model}-{task}" for model in models for task in TASKS]

    def parts(results: Results, place: Any) -> list[Part]:
        del place

        def compute(model: str, task: str) -> Arrays:
            return _head(task, run, material, config, _params(model, run, config, results))

        return [
            Part(f"{model}-{task}", partial(compute, model, task))
            for model in models
            for task in TASKS
        ]

    return Compute(
        STAGE,
        parts,
        lambda found: dict(zip(names, found, strict=True)),
        metrics=lambda found: _metrics(run, found),
    )


def _params(model: str, run: Run, config: EncoderConfig, results: Results) -> Any:
    name, _, seed = model.partition("-")
    if name == "pixels":
        return None
    if name == "mae":
        return encoders.one_seed(results, "pretrain", int(seed))["encoder"]
    return init(named(jax.random.key(run.seed + int(seed)), "random_encoder"), config)


def _head(task: str, run: Run, material: Material, config: EncoderConfig, params: Any) -> Arrays:
    scenes = material.scenes
    assert scenes is not None
    maps = _labels(task, scenes)
    tokens = {
        part: _tokens(task, part, run, material, config, params) for part in ("train", "test")
    }
    classes, patch = TASKS[task], config.patch
    head = fit_segmenter(
        jnp.asarray(tokens["train"]),
        jnp.asarray(maps[material.parts["train"]]),
        patch=patch,
        classes=classes,
        steps=run.evaluation.segmentation_steps,
    )
    said = chosen(segment(head, jnp.asarray(tokens["test"]), patch, classes))
    truth = maps[material.parts["test"]]
    matrix = segmentation.confusion(jnp.asarray(truth), said, classes)
    kept = slice(MAPS_KEPT)
    return {
        "confusion": np.asarray(matrix),
        "maps": np.asarray(said[kept], np.uint8),
        "truth": truth[kept],
    }


def _labels(task: str, scenes: Scenes) -> np.ndarray:
    """[N, H, W] uint8; pixels without data count for nothing."""
    own = scenes.labels if task == "cover" else scenes.changed.astype(np.uint8)
    return np.where(scenes.valid, own, segmentation.IGNORED).astype(np.uint8)


def _tokens(
    task: str, part: str, run: Run, material: Material, config: EncoderConfig, params: Any
) -> np.ndarray:
    scenes = material.scenes
    assert scenes is not None

    def of(images: np.ndarray) -> np.ndarray:
        pixels = material.normalized(part, images)
        if params is None:
            return np.asarray(patchify(jnp.asarray(pixels), config.patch))
        return encoders.encoder_tokens(params, config, run, pixels, scenes.gsd)

    first = of(material.images)
    if task == "cover":
        return first
    return np.abs(of(scenes.bands(material.bands, later=True)) - first)


def _metrics(run: Run, found: Mapping[str, Arrays]) -> dict[str, np.ndarray]:
    """mIoU of land cover, F1 and IoU of change; one or [seeds]."""
    metrics: dict[str, np.ndarray] = {}
    for name in ("pixels", *encoders.ENCODERS):
        own: Sequence[str] = [name]
        if name != "pixels":
            own = [f"{name}-{seed}" for seed in range(run.seeds)]
        cover = [segmentation.measures(jnp.asarray(found[f"{n}-cover"]["confusion"])) for n in own]
        change = [
            segmentation.measures(jnp.asarray(found[f"{n}-change"]["confusion"])) for n in own
        ]
        label = encoders.shown(run, name)
        values = {
            f"{label}_cover_miou": [float(one.miou) for one in cover],
            f"{label}_change_f1": [float(one.f1[1]) for one in change],
            f"{label}_change_iou": [float(one.iou[1]) for one in change],
        }
        for measure, numbers in values.items():
            metrics[measure] = np.array(numbers[0] if len(numbers) == 1 else numbers)
    return metrics
