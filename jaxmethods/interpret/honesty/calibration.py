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


@compiled("bins")
def calibration(logits: jax.Array, labels: jax.Array, bins: int = 15) -> Calibration:
    """Calibration of the most likely class.

    Args:
        logits: [N, C].
        labels: int [N].
        bins: of equal width in confidence.

    Returns:
        Errors and bins.
    """
    log_p = jax.nn.log_softmax(logits, axis=-1)
    p = jnp.exp(log_p)
    confidence, right = jnp.max(p, axis=1), jnp.argmax(p, axis=1) == labels
    place = jnp.minimum((confidence * bins).astype(int), bins - 1)
    total = lambda x: jax.ops.segment_sum(x, place, bins)  # noqa: E731
    count = total(jnp.ones_like(confidence))
    means = [total(x) / count for x in (confidence, right.astype(p.dtype))]  # NaN where empty
    apart = jnp.where(count > 0, jnp.abs(means[0] - means[1]), 0)
    onehot = jax.nn.one_hot(labels, logits.shape[1], dtype=p.dtype)
    return Calibration(
        jnp.sum(apart * count) / len(labels),
        jnp.max(apart),
        jnp.mean(jnp.sum((p - onehot) ** 2, axis=1)),
        -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], axis=1)),
        means[0],
        means[1],
        count,
    )
