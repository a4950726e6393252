"""Buildings as boxes on maps of land cover, judged by average precision.

The maps are those that linear heads painted (`dense`). Connected pixels of the class "built" are an
object; its box has the direction and the extent of its pixels' second moments, and it is the surer
the more pixels it has. The true maps, with the same boxes, say what maps allow at best: areas that
touch are one object there as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from jaxmethods.data.earth.scenes import BUILT
from jaxmethods.rsfm.config import Run
from jaxmethods.rsfm.evaluation.measures.detection import average_precision, polygon_iou
from jaxmethods.rsfm.recipes import dense, encoders
from jaxmethods.rsfm.recipes.material import Material
from jaxmethods.stages import Arrays, Compute, Part, Results

STAGE = "objects"
OVERLAP = 0.5
FEWEST = 3
"""Pixels of the smallest object."""


def stage(run: Run, material: Material) -> Compute:
    """Boxes of every model's maps.

    Args:
        run: the config.
        material: with scenes.

    Returns:
        The stage; its result is the model to its average precision at an overlap of one half.
    """
    models = ["truth", "pixels"]
    models += [f"{name}-{seed}" for name in encoders.ENCODERS for seed in range(run.seeds)]

    def parts(results: Results, place: Any) -> list[Part]:
        del place

        def compute(model: str) -> Arrays:
            own = results[dense.STAGE]["pixels-cover" if model == "truth" else f"{model}-cover"]
            maps = own["truth" if model == "truth" else "maps"]
            return {"ap": np.float32(precision_of(maps, _boxes(material, len(maps))))}

        return [Part(model, partial(compute, model)) for model in models]

    return Compute(
        STAGE,
        parts,
        lambda found: dict(zip(models, found, strict=True)),
        metrics=lambda found: _metrics(run, found),
    )


def precision_of(maps: np.ndarray, truth: np.ndarray) -> float:
    """Average precision of the boxes on maps.

    Args:
        maps: [N, H, W] classes.
        truth: [N, K, 4, 2] corners of the buildings.

    Returns:
        AP between 0 and 1 at an overlap of one half.
    """
    found = [objects_on(own) for own in maps]
    boxes = np.concatenate([own[0] for own in found])
    scores = np.concatenate([own[1] for own in found])
    image = np.repeat(np.arange(len(maps)), [len(own[0]) for own in found])
    count = truth.shape[1]
    known = truth.reshape(-1, 4, 2), np.repeat(np.arange(len(maps)), count)
    return average_precision(boxes, scores, image, *known, threshold=OVERLAP, overlap=polygon_iou)


def objects_on(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The boxes of connected built pixels.

    Args:
        labels: [H, W] classes.

    Returns:
        Corners (x, y) [K, 4, 2] and scores [K], numbers of pixels.
    """
    from scipy import ndimage  # half a second to import

    pieces = np.asarray(ndimage.label(labels == BUILT)[0])  # type: ignore[index]
    boxes, scores = [], []
    for place in range(1, int(pieces.max(initial=0)) + 1):
        rows, columns = np.nonzero(pieces == place)
        if len(rows) >= FEWEST:
            boxes.append(_box(np.stack([columns + 0.5, rows + 0.5], axis=1)))
            scores.append(float(len(rows)))
    return np.array(boxes).reshape(-1, 4, 2), np.array(scores)


def _box(points: np.ndarray) -> np.ndarray:
    """[4, 2] corners along the principal axes of pixels [n, 2].

    A rectangle of sides a, b has variances a^2 / 12, b^2 / 12 along them.
    """
    middle = points.mean(0)
    variances, axes = np.linalg.eigh(np.cov(points.T, bias=True) + np.eye(2) / 12)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * np.sqrt(3 * variances)
    return middle + corners @ axes.T


def _boxes(material: Material, number: int) -> np.ndarray:
    assert material.scenes is not None
    return material.scenes.boxes[material.parts["test"][:number]]


def _metrics(run: Run, found: Mapping[str, Arrays]) -> dict[str, np.ndarray]:
    metrics: dict[str, np.ndarray] = {}
    for name in ("truth", "pixels", *encoders.ENCODERS):
        own: Sequence[str] = [name]
        if name in encoders.ENCODERS:
            own = [f"{name}-{seed}" for seed in range(run.seeds)]
        values = [float(found[each]["ap"]) for each in own]
        label = f"{encoders.shown(run, name)}_built_ap"
        metrics[label] = np.array(values[0] if len(values) == 1 else values)
    return metrics
