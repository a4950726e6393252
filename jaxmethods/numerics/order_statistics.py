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
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.numerics.compiled import compiled

CANDIDATES = 3
"""Keys below which a pass counts the entries."""
DIGIT = 16
"""Bits that a pass over numbers that come in parts finds out."""
COUNTER = 10
"""Bits of a counter; those of all candidates share a uint32, so that a pass reads and adds once."""
SAMPLE = 1 << 16
"""Entries of every t that the first guess is made from."""
SAMPLE_DEVIATIONS = 4.0
DEVIATIONS = 2.5
"""Standard deviations between a guess, from the sample or from counts, and those around it."""
NARROW = 64
"""Keys of a bracket that is cut into equal parts."""
FLOATS = {4: jnp.float32, 8: jnp.float64}
"""Bytes of a key -> the type that has such keys."""
RANGE = 1 << 14
"""Entries of a leaf that are counted at a time on CPU; counters of a range fit into its caches."""


def largest(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """`jax.lax.top_k` whose outputs may be cut: where they are, XLA sorts everything on CPU.

    That takes fifteen to sixty times as long (the 50th of 32,000 logits: 38 and 0.7 ms, 8 rows, a
    core of a Xeon, jax 0.10).

    Args:
        values: [..., N].
        k: how many; static.

    Returns:
        Values and places [..., k], the largest first.
    """
    return jax.lax.optimization_barrier(jax.lax.top_k(values, k))


def kth_smallest(
    leaves: Sequence[jax.Array | tuple[jax.Array, ...]],
    k: int,
    prepare: Callable[..., jax.Array] = lambda values: values,
) -> jax.Array:
    """The k-th smallest (1-based) over all leaves, for every entry of their leading axis.

    Args:
        leaves: float arrays [T, ...]; NaN is not expected. Or tuples of arrays [T or 1, ...] of
            which `prepare` makes such values.
        k: 1 <= k <= number of entries of one t.
        prepare: entrywise, of ranges [T or 1, n] of a leaf's arrays. It is evaluated anew in every
            pass, so that what it makes is never in memory as a whole.

    Returns:
        [T] float32, or float64 where a leaf's values are: the value itself, not an interpolation.

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

    Returns:
        [..., T] in the dtype that `unpack` gives.
    """
    rows = [array.reshape(array.shape[0], -1) for array in arrays]
    size = rows[0].shape[1]
    ranges = size // RANGE

    def at_once(*rows: jax.Array) -> jax.Array:
        return total(function(*rows))

    def total(values: jax.Array) -> jax.Array:
        values = unpack(values)
        return jnp.sum(values, axis=-1, dtype=values.dtype)  # not a wider one with jax_enable_x64

    def in_turn(*rows: jax.Array) -> jax.Array:
        def cut(index: jax.Array | int) -> list[jax.Array]:
            return [jax.lax.dynamic_slice_in_dim(row, index * RANGE, RANGE, 1) for row in rows]

        def block(index: jax.Array, before: jax.Array) -> jax.Array:
            def add(place: jax.Array, values: jax.Array) -> jax.Array:
                return values + function(*cut(place))

            start, stop = index * most, jnp.minimum((index + 1) * most, ranges)
            values = jax.lax.fori_loop(start + 1, stop, add, function(*cut(start)))
            return before + total(values)

        rest = at_once(*(row[:, ranges * RANGE :] for row in rows))
        return jax.lax.fori_loop(0, -(-ranges // most), block, rest)

    if size <= RANGE:
        return at_once(*rows)
    return jax.lax.platform_dependent(*rows, cpu=in_turn, default=at_once)


def streamed_kth_smallest(read: Callable[[], Iterable[jax.Array]], k: Sequence[int]) -> np.ndarray:
    """Several order statistics of numbers that come in parts.

    The first pass counts upper halves of bit patterns, the second lower halves of those whose
    upper half is that of the result. Of float64 it takes four passes for four quarters.

    Args:
        read: starts a pass over all parts, float arrays [T, n], all float64 or none.
        k: 1-based ranks, each within the number of entries of one t.

    Returns:
        [len(k), T] float32 or float64: the values themselves.
    """
    found: np.ndarray | None = None  # [K, T], the leading digits of the keys
    rank, place = np.asarray(k)[:, None], 0
    while found is None or place:
        counts: np.ndarray | int = 0  # [K or 1, T, 2^16], of the keys with those leading digits
        for part in read():
            keys = np.asarray(_sortable_part(part))
            before = keys.dtype.itemsize * 8 // DIGIT if found is None else place
            counts = counts + _count_digits(keys, before - 1, found)
        place = before - 1
        totals = np.cumsum(counts, axis=-1) + np.zeros((len(k), 1, 1), np.int64)
        rank = np.broadcast_to(rank, totals.shape[:2])
        digit = np.sum(totals < rank[..., None], axis=-1)
        smaller = np.take_along_axis(totals, np.maximum(digit - 1, 0)[..., None], -1)[..., 0]
        rank = rank - np.where(digit > 0, smaller, 0)
        leading = keys.dtype.type(0) if found is None else found << keys.dtype.type(DIGIT)
        found = leading + digit.astype(keys.dtype)  # uint64 + int64 would be float64
    return np.asarray(value_of(jnp.asarray(found)))


def _count_digits(keys: np.ndarray, place: int, found: np.ndarray | None) -> np.ndarray:
    """[K or 1, T, 2^16]: how often a digit occurs in keys [T, n] that begin with `found` [K, T]."""
    kind = keys.dtype.type
    digits = (keys >> kind(DIGIT * place)) & kind((1 << DIGIT) - 1)
    if found is None:
        rows = [[np.bincount(row, minlength=1 << DIGIT) for row in digits]]
    else:
        leading = keys >> kind(DIGIT * (place + 1))
        rows = [
            [
                np.bincount(row[above == wanted], minlength=1 << DIGIT)
                for row, above, wanted in zip(digits, leading, of_rank, strict=True)
            ]
            for of_rank in found
        ]
    return np.asarray(rows, np.int64)


class _Bracket(NamedTuple):
    """What is known of the k-th key: low <= key <= high. All [T]; keys are uint32 or uint64."""

    low: jax.Array
    high: jax.Array
    below: jax.Array
    """How many entries are below `low`; fewer than k."""
    up_to: jax.Array
    """How many are at most `high`; k or more."""


@compiled("prepare")
def _search(
    groups: list[tuple[jax.Array, ...]], k: jax.Array, prepare: Callable[..., jax.Array]
) -> jax.Array:
    tasks = max(array.shape[0] for array in groups[0])
    size = sum(group[0][0].size for group in groups)
    kind = _key_type(groups, prepare)

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

    nothing, everything = jnp.zeros(tasks, jnp.uint32), jnp.full(tasks, size, jnp.uint32)
    lowest = jnp.zeros(tasks, kind)
    bracket = _Bracket(lowest, ~lowest, nothing, everything)
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
        keys = sortable(prepare(*values), candidates.dtype)
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
    kind = _key_type(groups, prepare)
    keys = [sortable(prepare(*group), kind) for group in rows]
    keys = jnp.sort(jnp.concatenate(keys, axis=1), axis=1)
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
    kind = width.dtype
    real = FLOATS[kind.itemsize]
    inside = (bracket.up_to - bracket.below).astype(real)
    share = (k - bracket.below).astype(real) / inside
    deviation = jnp.sqrt(share * (1 - share) / inside)
    around = share + DEVIATIONS * deviation * jnp.array([[-1.0], [0.0], [1.0]], real)
    # The largest float below 2^32 (2^64) is the last that an integer can hold.
    largest = 2.0**32 - 256 if kind == jnp.uint32 else 2.0**64 - 2048
    offsets = jnp.clip(around * width.astype(real), 0.0, largest).astype(kind)
    part = jnp.arange(1, CANDIDATES + 1, dtype=kind)[:, None]
    parts = part * (width // (CANDIDATES + 1)) + jnp.minimum(part, width % (CANDIDATES + 1))
    offsets = jnp.where((width <= NARROW) | evenly, parts, offsets)
    return bracket.low + jnp.clip(offsets, 1, jnp.maximum(width, 1))


def _key_type(groups: list[tuple[jax.Array, ...]], prepare: Callable[..., jax.Array]) -> Any:
    """That of the widest values, since only keys of one type have one order."""
    values = [jax.eval_shape(prepare, *group).dtype for group in groups]
    return jnp.dtype(jnp.uint64 if jnp.dtype(jnp.float64) in values else jnp.uint32)


def sortable(values: jax.Array, kind: Any = None) -> jax.Array:
    """Integers in the order of the floats: negative ones inverted, the sign bit set on the others.

    Args:
        kind: uint32, or uint64 as float64 needs it; None: what the values need.
    """
    if kind is None:
        kind = jnp.uint64 if values.dtype == jnp.float64 else jnp.uint32
    kind = jnp.dtype(kind)
    bits = jax.lax.bitcast_convert_type(values.astype(FLOATS[kind.itemsize]), kind)
    sign = jnp.asarray(1 << (8 * kind.itemsize - 1), kind)
    bits = jnp.where(bits == sign, jnp.asarray(0, kind), bits)  # -0 is 0
    return jnp.where(bits & sign, ~bits, bits | sign)


_sortable_part = jax.jit(sortable)


def value_of(keys: jax.Array) -> jax.Array:
    """The float of a `sortable` integer."""
    sign = jnp.asarray(1 << (8 * keys.dtype.itemsize - 1), keys.dtype)
    bits = jnp.where(keys & sign, keys ^ sign, ~keys)
    return jax.lax.bitcast_convert_type(bits, FLOATS[keys.dtype.itemsize])
