"""Exact order statistics of large and sharded trees, without sorting or gathering.

The k-th smallest of n numbers is found bit by bit: floating numbers are ordered like integers made
from their bit patterns, and every pass counts how many lie below a candidate. Counts are sums, so
leaves may be split over devices, and no index passes through a float.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

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


@jax.jit
def _search(leaves: list[jax.Array], k: jax.Array) -> jax.Array:
    keys = [_sortable(leaf) for leaf in leaves]

    def one_bit(index: jax.Array, found: jax.Array) -> jax.Array:
        # The largest key with fewer than k keys below it is that of the k-th.
        candidate = found | (jnp.uint32(1) << (31 - index).astype(jnp.uint32))
        below = sum((_count_below(key, candidate) for key in keys), jnp.uint32(0))
        return jnp.where(below < k, candidate, found)

    start = jnp.zeros(leaves[0].shape[:1], jnp.uint32)
    return _value(jax.lax.fori_loop(0, PASSES, one_bit, start))


def _count_below(keys: jax.Array, candidate: jax.Array) -> jax.Array:
    limit = candidate.reshape(-1, *(1,) * (keys.ndim - 1))
    return jnp.sum(keys < limit, axis=tuple(range(1, keys.ndim)), dtype=jnp.uint32)


def _sortable(values: jax.Array) -> jax.Array:
    """uint32 in the order of the floats: negative ones inverted, the sign bit set on the others."""
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    bits = jnp.where(bits == sign, jnp.uint32(0), bits)  # -0 is 0
    return jnp.where(bits & sign, ~bits, bits | sign)


def _value(keys: jax.Array) -> jax.Array:
    sign = jnp.uint32(1 << 31)
    bits = jnp.where(keys & sign, keys ^ sign, ~keys)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
