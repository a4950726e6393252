"""Distinct random rows of a large dataset, at a cost that doesn't depend on its size.

`jax.random.choice(..., replace=False)` sorts all L rows; for 2560 of 2 million that takes longer
than a gradient. Here the rows are the first values of a keyed pseudorandom permutation of
{0, ..., L - 1}: an alternating Feistel network permutes {0, ..., 2^b - 1}, 2^b >= L, and values
that fall outside are sent through it again until they land inside ("cycle walking"), which keeps
it a permutation; a value needs less than two rounds on average.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

HALF_ROUNDS = 8
"""Keyed half-rounds of the network."""


def distinct_rows(key: jax.Array, rows: int, count: int) -> jax.Array:
    """`count` different row numbers in random order, [count] uint32.

    Raises:
        ValueError: there are fewer rows than asked for, or more than 32 bits have numbers for.
    """
    if not 0 <= count <= rows:
        raise ValueError(f"count: expected at most the {rows} rows there are, got {count}")
    if rows >= 1 << 32:
        raise ValueError(f"rows: expected fewer than 2^32, got {rows}")
    bits, end = max(2, (rows - 1).bit_length()), jnp.uint32(rows)
    keys = jax.random.bits(key, (HALF_ROUNDS,), jnp.uint32)

    def outside(values: jax.Array) -> jax.Array:
        return jnp.any(values >= end)

    def walk(values: jax.Array) -> jax.Array:
        return jnp.where(values >= end, _permute(values, keys, bits), values)

    first = _permute(jnp.arange(count, dtype=jnp.uint32), keys, bits)
    return jax.lax.while_loop(outside, walk, first)


def _permute(values: jax.Array, keys: jax.Array, bits: int) -> jax.Array:
    """The Feistel network on {0, ..., 2^bits - 1}: each half is xored with a hash of the other."""
    low_bits = bits // 2
    low_mask, high_mask = jnp.uint32(2**low_bits - 1), jnp.uint32(2 ** (bits - low_bits) - 1)
    low, high = values & low_mask, values >> low_bits
    for half_round in range(0, HALF_ROUNDS, 2):
        low = low ^ (_hash(high ^ keys[half_round]) & low_mask)
        high = high ^ (_hash(low ^ keys[half_round + 1]) & high_mask)
    return (high << low_bits) | low


def _hash(values: jax.Array) -> jax.Array:
    """The finalizer of MurmurHash3."""
    values = (values ^ (values >> 16)) * jnp.uint32(0x85EBCA6B)
    values = (values ^ (values >> 13)) * jnp.uint32(0xC2B2AE35)
    return values ^ (values >> 16)
