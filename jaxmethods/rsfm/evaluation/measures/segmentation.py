r"""How well pixels are classified, from one confusion matrix over all images.

    IoU_c = n_cc / (n_c. + n_.c - n_cc),   F1_c = 2 n_cc / (n_c. + n_.c)
    kappa = (p_o - p_e) / (1 - p_e)

Means are over classes that occur in the truth or the prediction; torchmetrics averages over all
classes, which counts those that nowhere occur as 0.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

IGNORED = 255


class Segmentation(NamedTuple):
    """Measures of a confusion matrix."""

    iou: jax.Array
    """[C]; NaN where a class occurs nowhere."""
    miou: jax.Array
    f1: jax.Array
    """[C]; NaN where a class occurs nowhere."""
    mf1: jax.Array
    accuracy: jax.Array
    kappa: jax.Array


def confusion(
    truth: jax.Array, predicted: jax.Array, classes: int, ignored: int = IGNORED
) -> jax.Array:
    """Counts of pixels by true and predicted class; `measures` adds those of several batches.

    Args:
        truth: [...] integers.
        predicted: [...] integers.
        classes: C; static.
        ignored: the label of pixels that don't count; so do labels that are no class.

    Returns:
        [C, C] int32, rows are true classes.

    Raises:
        ValueError: a prediction for a pixel that counts, which is none of the C classes. Within
            `jit`, where values aren't known, all counts are -1 then, which `measures` are NaN of.
    """
    truth, predicted = truth.reshape(-1), predicted.reshape(-1)
    counts = (truth != ignored) & (truth >= 0) & (truth < classes)
    _check_classes(predicted, counts, classes)
    places = jnp.where(counts, truth.astype(jnp.int32) * classes + predicted, 0)
    flat = jnp.zeros(classes * classes, jnp.int32).at[places].add(counts.astype(jnp.int32))
    wrong = counts & ((predicted < 0) | (predicted >= classes))
    flat = jnp.where(jnp.any(wrong), -1, flat)  # -1 would be another class of another row
    return flat.reshape(classes, classes)


def _check_classes(predicted: jax.Array, counts: jax.Array, classes: int) -> None:
    """Refuses what would be counted as a prediction of another class for another true one."""
    if isinstance(predicted, Tracer) or isinstance(counts, Tracer):
        return
    known = np.asarray(predicted)
    wrong = known[np.asarray(counts) & ((known < 0) | (known >= classes))]
    if wrong.size:
        raise ValueError(f"predicted: expected classes 0 to {classes - 1}, got {wrong[0]}")


def measures(matrix: jax.Array, ignored: int = IGNORED) -> Segmentation:
    """IoU, F1, accuracy and kappa.

    Args:
        matrix: [..., C, C] counts, rows are true classes; those of several batches are added here
            in floating point, as int32 ends at 2^31 pixels.
        ignored: that of `confusion`; where it is one of the C classes, it is in no mean: no pixel
            of it counts, so that it can only be named where it is wrong.

    Returns:
        The measures, in percent of nothing: between 0 and 1; NaN where a count
        is negative: a sum has wrapped around, or a prediction was no class.
    """
    counts = matrix.astype(jnp.promote_types(jnp.float32, jnp.result_type(float)))
    counts = jnp.where(jnp.any(counts < 0), jnp.nan, counts)
    counts = jnp.sum(counts.reshape(-1, *counts.shape[-2:]), axis=0)
    hits, true, named = jnp.diagonal(counts), jnp.sum(counts, axis=1), jnp.sum(counts, axis=0)
    union = true + named - hits
    present = (union > 0) & (jnp.arange(len(counts)) != ignored)
    iou = jnp.where(present, hits / jnp.maximum(union, 1), jnp.nan)
    f1 = jnp.where(present, 2 * hits / jnp.maximum(true + named, 1), jnp.nan)
    total = jnp.maximum(jnp.sum(counts), 1)
    agreed, chance = jnp.sum(hits) / total, jnp.sum(true * named) / total**2
    kappa = (agreed - chance) / jnp.maximum(1 - chance, 1e-12)
    return Segmentation(iou, jnp.nanmean(iou), f1, jnp.nanmean(f1), agreed, kappa)
