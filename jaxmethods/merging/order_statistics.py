"""Exact order statistics of large and sharded trees, without sorting or gathering them as a whole.

Floating numbers are ordered like integers made from their bit patterns, their keys. The k-th
smallest of n numbers lies in a bracket of keys, and every pass over the numbers counts how many lie
below each of three candidates close around where the k-th is to be expected. A sample gives the
first guess, the counts at the bracket's ends the next ones; seven or eight passes do where one bit
at a time takes 32, and every fourth pass cuts the bracket into equal parts, whatever the numbers
are. Counts are sums, so leaves may be split over devices, and no index passes through a float.
Numbers that don't fit in memory are counted in two passes over them (`streamed_kth_smallest`), with
the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

CANDIDATES = 3
"""Keys below which a pass counts the entries."""
COUNTER = 10
"""Bits of a counter; those of all candidates share a uint32, so that a pass reads and adds once."""
SAMPLE = 1 << 16
"""Entries of every t that the first guess is made from."""
SAMPLE_DEVIATIONS = 4.0
DEVIATIONS = 2.5
"""Standard deviations between a guess, from the sample or from counts, and those around it."""
NARROW = 64
"""Keys of a bracket that is cut into equal parts."""
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
    function: Callable[..., jax.Array],
    arrays: tuple[jax.Array, ...],
    unpack: Callable[[jax.Array], jax.Array] = lambda values: values,
    most: int = 1 << 30,
) -> jax.Array:
    """Sums of an entrywise function with integer values, [..., T].

    On CPU, entries are taken a range at a time and added in place: XLA's reductions there keep
    the function's values as a whole and don't use vector instructions.

    Args:
        function: of ranges [T or 1, n] of the arrays, to [T, n].
        arrays: [T or 1, ...], equal but for the leading axis.
        unpack: [T, n] -> [..., T, n], where an integer of `function` holds several counters.
        most: how many of its values may be added before they are unpacked.
    """
    rows = [array.reshape(array.shape[0], -1) for array in arrays]
    size = rows[0].shape[1]
    ranges = size // RANGE

    def at_once(*rows: jax.Array) -> jax.Array:
        return jnp.sum(unpack(function(*rows)), axis=-1)

    def in_turn(*rows: jax.Array) -> jax.Array:
        def cut(index: jax.Array | int) -> list[jax.Array]:
            return [jax.lax.dynamic_slice_in_dim(row, index * RANGE, RANGE, 1) for row in rows]

        def block(index: jax.Array, total: jax.Array) -> jax.Array:
            def add(place: jax.Array, values: jax.Array) -> jax.Array:
                return values + function(*cut(place))

            start, stop = index * most, jnp.minimum((index + 1) * most, ranges)
            values = jax.lax.fori_loop(start + 1, stop, add, function(*cut(start)))
            return total + jnp.sum(unpack(values), axis=-1)

        rest = at_once(*(row[:, ranges * RANGE :] for row in rows))
        return jax.lax.fori_loop(0, -(-ranges // most), block, rest)

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


class _Bracket(NamedTuple):
    """What is known of the k-th key: low <= key <= high. All [T] uint32."""

    low: jax.Array
    high: jax.Array
    below: jax.Array
    """How many entries are below `low`; fewer than k."""
    up_to: jax.Array
    """How many are at most `high`; k or more."""


@partial(jax.jit, static_argnames=("prepare",))
def _search(
    groups: list[tuple[jax.Array, ...]], k: jax.Array, prepare: Callable[..., jax.Array]
) -> jax.Array:
    tasks = max(array.shape[0] for array in groups[0])
    size = sum(group[0][0].size for group in groups)

    def narrow(bracket: _Bracket, candidates: jax.Array) -> _Bracket:
        for candidate, count in zip(candidates, _below(groups, candidates, prepare), strict=True):
            is_low = (count < k) & (candidate > bracket.low)
            is_high = (count >= k) & (candidate <= bracket.high)
            bracket = _Bracket(
                jnp.where(is_low, candidate, bracket.low),
                jnp.where(is_high, candidate - 1, bracket.high),
                jnp.where(is_low, count, bracket.below),
                jnp.where(is_high, count, bracket.up_to),
            )
        return bracket

    zeros, ones = jnp.zeros(tasks, jnp.uint32), jnp.full(tasks, 0xFFFFFFFF, jnp.uint32)
    bracket = _Bracket(zeros, ones, zeros, jnp.full(tasks, size, jnp.uint32))
    if size > SAMPLE:
        bracket = narrow(bracket, _sampled(groups, k / size, prepare))

    def one_pass(carry: tuple[jax.Array, _Bracket]) -> tuple[jax.Array, _Bracket]:
        index, bracket = carry
        return index + 1, narrow(bracket, _expected(bracket, k, index % 4 == 3))

    start = jnp.int32(0), bracket
    _, bracket = jax.lax.while_loop(
        lambda carry: jnp.any(carry[1].low < carry[1].high), one_pass, start
    )
    return value_of(bracket.low)


def _below(
    groups: list[tuple[jax.Array, ...]], candidates: jax.Array, prepare: Callable[..., jax.Array]
) -> jax.Array:
    """How many keys are below each candidate [3, T]: uint32 [3, T], in one pass."""
    shifts = jnp.arange(CANDIDATES, dtype=jnp.uint32) * COUNTER

    def pack(*values: jax.Array) -> jax.Array:
        keys = sortable(prepare(*values))
        hits = [(keys < candidate[:, None]).astype(jnp.uint32) for candidate in candidates]
        return reduce(jnp.bitwise_or, [hit << (COUNTER * i) for i, hit in enumerate(hits)])

    def unpack(counters: jax.Array) -> jax.Array:
        return (counters >> shifts[:, None, None]) & jnp.uint32((1 << COUNTER) - 1)

    most = (1 << COUNTER) - 1
    counts = [sum_over_entries(pack, group, unpack, most) for group in groups]
    return sum(counts, jnp.uint32(0))


def _sampled(
    groups: list[tuple[jax.Array, ...]], share: jax.Array, prepare: Callable[..., jax.Array]
) -> jax.Array:
    """Candidates [3, T] around the key below which a share of the entries lies, from a sample."""
    step = sum(group[0][0].size for group in groups) // SAMPLE | 1
    rows = [[array.reshape(len(array), -1)[:, ::step] for array in group] for group in groups]
    keys = jnp.sort(jnp.concatenate([sortable(prepare(*group)) for group in rows], axis=1), axis=1)
    size = keys.shape[1]
    deviation = jnp.sqrt(share * (1 - share) * size)
    places = share * size + SAMPLE_DEVIATIONS * deviation * jnp.array([-1.0, 0.0, 1.0])
    places = jnp.clip(jnp.round(places).astype(jnp.int32), 0, size - 1)
    return jnp.maximum(keys[:, places].T, 1)


def _expected(bracket: _Bracket, k: jax.Array, evenly: jax.Array) -> jax.Array:
    """Candidates [3, T] from the counts at the bracket's ends, as if keys were evenly spread.

    In a narrow bracket, or if `evenly`, they cut it into equal parts.
    """
    width = bracket.high - bracket.low
    inside = (bracket.up_to - bracket.below).astype(jnp.float32)
    share = (k - bracket.below).astype(jnp.float32) / inside
    deviation = jnp.sqrt(share * (1 - share) / inside)
    around = share + DEVIATIONS * deviation * jnp.array([[-1.0], [0.0], [1.0]])
    # The largest float32 below 2^32 is the last that an integer can hold.
    offsets = jnp.clip(around * width.astype(jnp.float32), 0.0, 2.0**32 - 256).astype(jnp.uint32)
    part = jnp.arange(1, CANDIDATES + 1, dtype=jnp.uint32)[:, None]
    parts = part * (width // (CANDIDATES + 1)) + jnp.minimum(part, width % (CANDIDATES + 1))
    offsets = jnp.where((width <= NARROW) | evenly, parts, offsets)
    return bracket.low + jnp.clip(offsets, 1, jnp.maximum(width, 1))


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
