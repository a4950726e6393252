"""Whether a model's probabilities are frequencies.

    ECE      sum over bins of |accuracy - confidence| n_b / n                 (Guo et al. 2017)
    Brier    mean |p - onehot(y)|^2
    NLL      mean -log p_y

The binned error is biased upwards for few examples: bins differ by chance.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.precision import sums_by_place, wide
from jaxmethods.numerics.predictions import labeled, right


class Calibration(NamedTuple):
    """Numbers [] and the diagram's bins [B]."""

    expected_error: jax.Array
    largest_error: jax.Array
    brier: jax.Array
    negative_log_likelihood: jax.Array
    confidence: jax.Array
    """[B], mean in each bin; NaN in an empty one."""
    accuracy: jax.Array
    """[B]; NaN in an empty one."""
    count: jax.Array
    """[B]."""


class Bins(NamedTuple):
    """The reliability diagram."""

    expected_error: jax.Array
    largest_error: jax.Array
    confidence: jax.Array
    """[B], mean in each bin; NaN in an empty one."""
    accuracy: jax.Array
    """[B]; NaN in an empty one."""
    count: jax.Array
    """[B], weights."""


def binned(confidence: jax.Array, right: jax.Array, weight: jax.Array, bins: int = 15) -> Bins:
    """The diagram from what was predicted with what confidence.

    Args:
        confidence: of the most likely class, any shape.
        right: whether it is the label, 0 or 1.
        weight: 0 for what doesn't count.
        bins: of equal width in confidence.

    Returns:
        Errors [] and bins [B].
    """
    # NaN has no place of its own: left out, it would be calibrated.
    known = jnp.where(jnp.isnan(confidence), 0, confidence)
    place = jnp.minimum((known * bins).astype(int), bins - 1).reshape(-1)

    def total(values: jax.Array) -> jax.Array:
        counted = jnp.where(weight == 0, 0, weight * values)
        return sums_by_place(counted.reshape(-1), place, bins)

    count = total(jnp.ones_like(confidence))
    mean, accuracy = (total(x) / count for x in (confidence, right))  # NaN where empty
    apart = jnp.where(count > 0, jnp.abs(mean - accuracy), 0)
    return Bins(jnp.sum(apart * count) / jnp.sum(count), jnp.max(apart), mean, accuracy, count)


@compiled("bins")
def calibration(logits: jax.Array, labels: jax.Array, bins: int = 15) -> Calibration:
    """Calibration of the most likely class.

    Args:
        logits: [N, C].
        labels: int [N]; an example whose label is no class, such as -1, doesn't count.
        bins: of equal width in confidence.

    Returns:
        Errors and bins.
    """
    # Sums of half precision stop at a few hundred examples.
    logits = wide(logits)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    p = jnp.exp(log_p)
    confidence, hits = jnp.max(p, axis=1), right(p, labels)
    there = labeled(labels, logits.shape[1])
    found = binned(confidence, hits.astype(p.dtype), there.astype(p.dtype), bins)
    onehot = jax.nn.one_hot(labels, logits.shape[1], dtype=p.dtype)
    own = jnp.take_along_axis(log_p, jnp.where(there, labels, 0)[:, None], axis=1)[:, 0]
    return Calibration(
        found.expected_error,
        found.largest_error,
        jnp.mean(jnp.sum((p - onehot) ** 2, axis=1), where=there),
        -jnp.mean(own, where=there),
        found.confidence,
        found.accuracy,
        found.count,
    )
