"""Exact order statistics of large and sharded trees, without sorting or gathering.

The k-th smallest of n numbers is found bit by bit: floating numbers are ordered like integers made
from their bit patterns, and every pass counts how many lie below a candidate. Counts are sums, so
leaves may be split over devices, and no index passes through a float. Numbers that don't fit in
memory are counted in two passes over them (`streamed_kth_smallest`), with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

PASSES = 32
"""One for every bit of a float32."""


def kth_smallest(leaves: Sequence[jax.Array], k: int) -> jax.Array:
    """The k-th smallest (1-based) over all leaves, for every entry of their leading axis.

    Args:
        leaves: float arrays [T, ...], read as float32; NaN is not expected.
        k: 1 <= k <= number of entries of one t.

    Returns:
        [T] float32: the value itself, not an interpolation.

    Raises:
        ValueError: k is out of range, or there are 2^32 entries or more.
    """
    size = sum(leaf[0].size for leaf in leaves)
    if not 1 <= k <= size < 2**32:
        raise ValueError(f"k: expected 1 to {size} (below 2^32), got {k}")
    return _search(list(leaves), jnp.uint32(k))


def streamed_kth_smallest(read: Callable[[], Iterable[jax.Array]], k: Sequence[int]) -> np.ndarray:
    """Several order statistics of numbers that come in parts.

    The first pass counts upper halves of bit patterns, the second lower halves of those whose
    upper half is that of the result.

    Args:
        read: starts a pass over all parts, float arrays [T, n]; it is called twice.
        k: 1-based ranks, each within the number of entries of one t.

    Returns:
        [len(k), T] float32: the values themselves.
    """
    half = 1 << 16
    upper: np.ndarray | int = 0
    for part in read():
        keys = np.asarray(_sortable_part(part))
        upper = upper + np.stack([np.bincount(row >> 16, minlength=half) for row in keys])
    totals = np.cumsum(upper, axis=1)
    found = np.stack([[np.searchsorted(total, rank) for total in totals] for rank in k])  # [K, T]
    lower = np.zeros((*found.shape, half), np.int64)
    for part in read():
        for t, row in enumerate(np.asarray(_sortable_part(part))):
            above = row >> 16
            for counts, wanted in zip(lower[:, t], found[:, t], strict=True):
                counts += np.bincount(row[above == wanted] & (half - 1), minlength=half)
    keys = np.empty(found.shape, np.uint32)
    for place, top in np.ndenumerate(found):
        rank = k[place[0]] - (totals[place[1], top - 1] if top else 0)
        keys[place] = (int(top) << 16) + int(np.searchsorted(np.cumsum(lower[place]), rank))
    return np.asarray(value_of(jnp.asarray(keys)))


@jax.jit
def _search(leaves: list[jax.Array], k: jax.Array) -> jax.Array:
    keys = [sortable(leaf) for leaf in leaves]

    def one_bit(index: jax.Array, found: jax.Array) -> jax.Array:
        # The largest key with fewer than k keys below it is that of the k-th.
        candidate = found | (jnp.uint32(1) << (31 - index).astype(jnp.uint32))
        below = sum((_count_below(key, candidate) for key in keys), jnp.uint32(0))
        return jnp.where(below < k, candidate, found)

    start = jnp.zeros(leaves[0].shape[:1], jnp.uint32)
    return value_of(jax.lax.fori_loop(0, PASSES, one_bit, start))


def _count_below(keys: jax.Array, candidate: jax.Array) -> jax.Array:
    limit = candidate.reshape(-1, *(1,) * (keys.ndim - 1))
    return jnp.sum(keys < limit, axis=tuple(range(1, keys.ndim)), dtype=jnp.uint32)


def sortable(values: jax.Array) -> jax.Array:
    """uint32 in the order of the floats: negative ones inverted, the sign bit set on the others."""
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    bits = jnp.where(bits == sign, jnp.uint32(0), bits)  # -0 is 0
    return jnp.where(bits & sign, ~bits, bits | sign)


_sortable_part = jax.jit(sortable)


def value_of(keys: jax.Array) -> jax.Array:
    """The float32 of a `sortable` integer."""
    sign = jnp.uint32(1 << 31)
    bits = jnp.where(keys & sign, keys ^ sign, ~keys)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
