r"""Accuracy, and average precision and F1 where an image has several labels.

AP = sum_n (R_n - R_{n-1}) P_n        over distinct scores, the largest first
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.numerics.precision import wide
from jaxmethods.numerics.predictions import labeled


class MultiLabel(NamedTuple):
    """How well several labels are found; macro is over labels, micro over all pairs."""

    ap: jax.Array
    """[C]; NaN for a label that no image has, which is not in the macro mean."""
    map_macro: jax.Array
    map_micro: jax.Array
    f1: jax.Array
    """[C]; NaN for a label that no image has and none was said to have, as in the other mean."""
    f1_macro: jax.Array
    f1_micro: jax.Array


def top_k_accuracy(scores: jax.Array, labels: jax.Array, k: int = 1) -> jax.Array:
    """Share of images whose label is among the k largest scores; equal scores count in its favor.

    A score that is NaN is beaten by all: an image of NaN scores is not right.

    Args:
        scores: [N, C].
        labels: [N]; an image whose label is no class, such as -1, doesn't count.
        k: static.

    Returns:
        [] float32; NaN where no image has a label.
    """
    there = labeled(labels, scores.shape[1])
    own = jnp.take_along_axis(scores, jnp.where(there, labels, 0)[:, None], axis=1)
    # Not `scores > own`, which is false of NaN and would make it the largest.
    right = jnp.sum(~(scores <= own), axis=1) < k
    return jnp.mean(right, dtype=jnp.float32, where=there)


def mean_class_accuracy(predictions: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    """The mean over classes that occur of the share of their images that is right.

    Args:
        predictions: [N].
        labels: [N].
        classes: C; static.

    Returns:
        [] float32.
    """
    own = jax.nn.one_hot(labels, classes)
    number = jnp.sum(own, axis=0)
    right = jnp.sum(own * (predictions == labels)[:, None], axis=0)
    return jnp.sum(right / jnp.maximum(number, 1)) / jnp.sum(number > 0)


def average_precision(scores: jax.Array, truth: jax.Array) -> jax.Array:
    """Average precision of a ranking; equal scores are one step of it.

    Args:
        scores: [N], larger is surer.
        truth: [N] bool or 0/1; what is negative, such as -1 of unknown, doesn't count.

    Returns:
        [] float32, or what is wider of the scores; NaN where nothing is true.
    """
    # What is unknown comes last, where it is in nobody's precision.
    scores = jnp.where(truth < 0, jnp.nan, wide(scores))
    order = jnp.argsort(-scores)
    ranked, true = scores[order], (truth[order] > 0).astype(scores.dtype)
    found = jnp.cumsum(true)
    last = jnp.searchsorted(-ranked, -ranked, side="right") - 1
    precision = found[last] / (last + 1)
    return jnp.sum(precision * true) / found[-1]


def multilabel(scores: jax.Array, truth: jax.Array, threshold: float = 0.5) -> MultiLabel:
    """Average precision and F1 of images with several labels.

    Args:
        scores: [N, C] probabilities.
        truth: [N, C] 0/1; what is negative, such as -1 of unknown, doesn't count.
        threshold: above which a label counts as found.

    Returns:
        The measures.
    """
    scores = wide(scores)
    each = jax.vmap(average_precision, in_axes=1)(scores, truth)
    micro = average_precision(scores.reshape(-1), truth.reshape(-1))
    found = ((scores > threshold) & (truth >= 0)).astype(scores.dtype)
    true = (truth > 0).astype(scores.dtype)
    hits = jnp.sum(found * true, axis=0)
    named = jnp.sum(found, axis=0) + jnp.sum(true, axis=0)
    f1 = jnp.where(named > 0, 2 * hits / jnp.maximum(named, 1), jnp.nan)
    of_all = 2 * jnp.sum(hits) / jnp.maximum(jnp.sum(named), 1)
    return MultiLabel(each, jnp.nanmean(each), micro, f1, jnp.nanmean(f1), of_all)
