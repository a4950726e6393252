"""Exact order statistics of large and sharded trees, without sorting or gathering.

The k-th smallest of n numbers is found bit by bit: floating numbers are ordered like integers made
from their bit patterns, and every pass counts how many lie below a candidate. Counts are sums, so
leaves may be split over devices, and no index passes through a float. Numbers that don't fit in
memory are counted in two passes over them (`streamed_kth_smallest`), with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

PASSES = 32
"""One for every bit of a float32."""
RANGE = 1 << 14
"""Entries of a leaf that are counted at a time on CPU; counters of a range fit into its caches."""


def kth_smallest(
    leaves: Sequence[jax.Array | tuple[jax.Array, ...]],
    k: int,
    prepare: Callable[..., jax.Array] = lambda values: values,
) -> jax.Array:
    """The k-th smallest (1-based) over all leaves, for every entry of their leading axis.

    Args:
        leaves: float arrays [T, ...], read as float32; NaN is not expected. Or tuples of arrays
            [T or 1, ...] of which `prepare` makes such values.
        k: 1 <= k <= number of entries of one t.
        prepare: entrywise, of ranges [T or 1, n] of a leaf's arrays. It is evaluated anew in every
            pass, so that what it makes is never in memory as a whole.

    Returns:
        [T] float32: the value itself, not an interpolation.

    Raises:
        ValueError: k is out of range, or there are 2^32 entries or more.
    """
    groups = [leaf if isinstance(leaf, tuple) else (leaf,) for leaf in leaves]
    size = sum(group[0][0].size for group in groups)
    if not 1 <= k <= size < 2**32:
        raise ValueError(f"k: expected 1 to {size} (below 2^32), got {k}")
    return _search(groups, jnp.uint32(k), prepare)


def sum_over_entries(
    function: Callable[..., jax.Array], arrays: tuple[jax.Array, ...]
) -> jax.Array:
    """Sums of an entrywise function with integer values, [T].

    On CPU, entries are taken a range at a time and added in place: XLA's reductions there keep
    the function's values as a whole and don't use vector instructions.

    Args:
        function: of ranges [T or 1, n] of the arrays, to [T, n].
        arrays: [T or 1, ...], equal but for the leading axis.
    """
    rows = [array.reshape(array.shape[0], -1) for array in arrays]
    size = rows[0].shape[1]

    def at_once(*rows: jax.Array) -> jax.Array:
        return jnp.sum(function(*rows), axis=1)

    def in_turn(*rows: jax.Array) -> jax.Array:
        def add(index: jax.Array, total: jax.Array) -> jax.Array:
            cut = [jax.lax.dynamic_slice_in_dim(row, index * RANGE, RANGE, 1) for row in rows]
            return total + function(*cut)

        first = function(*(row[:, :RANGE] for row in rows))
        total = jnp.sum(jax.lax.fori_loop(1, size // RANGE, add, first), axis=1)
        if size % RANGE == 0:
            return total
        return total + at_once(*(row[:, size // RANGE * RANGE :] for row in rows))

    if size <= RANGE:
        return at_once(*rows)
    return jax.lax.platform_dependent(*rows, cpu=in_turn, default=at_once)


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


@partial(jax.jit, static_argnames=("prepare",))
def _search(
    groups: list[tuple[jax.Array, ...]], k: jax.Array, prepare: Callable[..., jax.Array]
) -> jax.Array:
    def one_bit(index: jax.Array, found: jax.Array) -> jax.Array:
        # The largest key with fewer than k keys below it is that of the k-th.
        candidate = found | (jnp.uint32(1) << (31 - index).astype(jnp.uint32))

        def is_below(*values: jax.Array) -> jax.Array:
            return (sortable(prepare(*values)) < candidate[:, None]).astype(jnp.uint32)

        below = sum((sum_over_entries(is_below, group) for group in groups), jnp.uint32(0))
        return jnp.where(below < k, candidate, found)

    tasks = max(array.shape[0] for array in groups[0])
    start = jnp.zeros(tasks, jnp.uint32)
    return value_of(jax.lax.fori_loop(0, PASSES, one_bit, start))


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
