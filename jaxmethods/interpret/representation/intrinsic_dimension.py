"""The dimension of the set that features lie on, from distances to nearest neighbors.

    TwoNN            d = N / sum_i log(r_i2 / r_i1)                       (Facco et al. 2017)
    Levina-Bickel    1 / d = mean_i (k - 1)^-1 sum_{j < k} log(r_ik / r_ij)
                     (Levina, Bickel 2004, averaged as MacKay and Ghahramani 2005 correct it)

Both are of points: a row that is there again adds none, neither as a point nor as a neighbor, whose
two equal distances would be a ratio of 1. Rows equal to an earlier one are left out and counted.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.precision import in_own_unit, wide


class Dimension(NamedTuple):
    """All []."""

    value: jax.Array
    error: jax.Array
    """Standard error, as if the rows' ratios were independent."""
    duplicates: jax.Array
    """Rows left out."""


def nearest_distances(
    features: jax.Array, k: int, chunk: int = 256, there: jax.Array | None = None
) -> jax.Array:
    """Distances [N, k] of every row to its k nearest others, ascending; a chunk of rows at a time.

    From differences, not from inner products: those lose small distances to rounding.

    Args:
        features: [N, D].
        k: how many others.
        chunk: rows at a time.
        there: [N] bool, which rows are anybody's neighbors; None: all.

    Returns:
        [N, k]; infinite where there are fewer.

    Raises:
        ValueError: not more rows than k.
    """
    features = wide(features)
    count = len(features)
    if not 1 <= k < count:
        raise ValueError(f"k: expected 1 to {count - 1} (one less than the rows), got {k}")

    def row(index: jax.Array) -> jax.Array:
        squares = jnp.sum((features - features[index]) ** 2, axis=1)
        squares = squares.at[index].set(jnp.inf)
        squares = squares if there is None else jnp.where(there, squares, jnp.inf)
        return jnp.sqrt(-jax.lax.top_k(-squares, k)[0])

    return jax.lax.map(row, jnp.arange(count), batch_size=min(chunk, count))


def _distances_of_points(features: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Distances [N, k] between different rows, and which rows are points with k others [N] bool."""
    features = in_own_unit(features)  # ratios have no unit, squares of differences end somewhere

    def apart() -> tuple[jax.Array, jax.Array]:
        places = jnp.arange(len(features))

        def again(place: jax.Array) -> jax.Array:
            return jnp.any(jnp.all(features == features[place], axis=1) & (places < place))

        first = ~jax.lax.map(again, places, batch_size=min(256, len(features)))
        return nearest_distances(features, k, there=first), first

    found = nearest_distances(features, k)
    everything = found, jnp.ones(len(found), bool)
    distances, first = jax.lax.cond(jnp.any(found[:, 0] == 0), apart, lambda: everything)
    return distances, first & (distances[:, 0] > 0) & jnp.isfinite(distances[:, -1])


@compiled("discard")
def two_nn(features: jax.Array, discard: float = 0.0) -> Dimension:
    """TwoNN's maximum likelihood.

    Args:
        features: [N, D].
        discard: share of the largest ratios to leave out as outliers; the rest is then fitted as
            censored at the largest that is kept.

    Returns:
        The dimension [] with error and the number of duplicates.
    """
    distances, there = _distances_of_points(features, 2)
    logs = jnp.where(
        there, jnp.log(jnp.where(there, distances[:, 1] / distances[:, 0], 1)), jnp.inf
    )
    count = jnp.sum(there)
    kept = jnp.floor((1 - discard) * count).astype(int) if discard else count
    ordered = jnp.sort(logs)
    place = jnp.arange(len(logs))
    total = jnp.sum(jnp.where(place < kept, ordered, 0))
    total = total + (count - kept) * ordered[jnp.maximum(kept - 1, 0)]
    value = kept / total
    return Dimension(value, value / jnp.sqrt(kept), len(features) - count)


@compiled("k")
def levina_bickel(features: jax.Array, k: int = 10) -> Dimension:
    """Levina and Bickel's maximum likelihood from k neighbors.

    Args:
        features: [N, D].
        k: neighbors.

    Returns:
        The dimension [] with error and the number of duplicates.

    Raises:
        ValueError: fewer than two neighbors, or not more rows than neighbors.
    """
    if k < 2:
        raise ValueError(f"k: expected at least 2, got {k}")
    distances, there = _distances_of_points(features, k)
    ratio = distances[:, -1:] / jnp.where(there[:, None], distances[:, :-1], 1)
    inverse = jnp.where(there, jnp.sum(jnp.log(jnp.where(there[:, None], ratio, 1)), 1), 0)
    count = jnp.sum(there)
    mean = jnp.sum(inverse) / (k - 1) / count
    return Dimension(1 / mean, 1 / mean / jnp.sqrt(count * (k - 1)), len(features) - count)
