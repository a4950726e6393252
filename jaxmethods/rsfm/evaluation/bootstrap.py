"""How sure a measure of test images is, and whether two models differ on the same images.

Images are drawn with replacement, the same ones for all models, so that what is hard for all of
them cancels in differences (Efron 1979; percentile intervals).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.statistics import Interval, percentile_interval


@compiled("draws")
def resampled_means(key: jax.Array, values: jax.Array, draws: int = 1000) -> jax.Array:
    """Means over images drawn anew.

    Args:
        key: [] typed random key; the same key draws the same images.
        values: [..., N] of every image: right or wrong, a recall.
        draws: R; static.

    Returns:
        [R, ...] float32.
    """
    number = values.shape[-1]

    def one(key: jax.Array) -> jax.Array:
        rows = jax.random.randint(key, (number,), 0, number)
        return jnp.mean(values[..., rows], axis=-1, dtype=jnp.float32)

    return jax.lax.map(one, jax.random.split(key, draws))


def interval(key: jax.Array, values: jax.Array, draws: int = 1000) -> Interval:
    """The mean of values [N] with its interval."""
    means = np.asarray(resampled_means(key, values, draws=draws))
    return percentile_interval(np.mean(values, dtype=float), means)


def paired_difference(
    key: jax.Array, first: jax.Array, second: jax.Array, draws: int = 1000
) -> Interval:
    """The mean of first - second over the same images, with its interval.

    Args:
        key: [] typed random key.
        first: [N] of every image.
        second: [N] of the same images.
        draws: how often they are drawn anew.

    Returns:
        The difference; where its interval excludes zero, the two differ.

    Raises:
        ValueError: values of different images.
    """
    if np.shape(first) != np.shape(second):
        raise ValueError(f"second: expected {np.shape(first)} values, got {np.shape(second)}")
    return interval(key, jnp.asarray(first, jnp.float32) - jnp.asarray(second, jnp.float32), draws)
