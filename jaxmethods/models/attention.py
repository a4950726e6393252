"""Causal attention over new tokens and a cache of earlier ones, and what a token may see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

Kernel: TypeAlias = Literal["xla", "cudnn"]
"""`jax.nn.dot_product_attention`'s implementation; cuDNN wants half precision on a GPU."""
Past: TypeAlias = tuple[jax.Array, jax.Array] | None
"""Cached keys and values of one layer, [B, S, K, d] each."""


class Cache(NamedTuple):
    """Keys and values of the tokens so far; one write index serves all rows."""

    keys: jax.Array
    """[L, B, S, K, d], rotated."""
    values: jax.Array
    """[L, B, S, K, d]."""
    mask: jax.Array
    """[B, S] bool: what is a token, as opposed to padding or not yet written."""
    length: jax.Array
    """[] int32: where the next token is written."""


def causal_attention(
    batch: int,
    new: int,
    mask: jax.Array | None,
    cache: Cache | None,
    window: int | None = None,
    kernel: Kernel | None = None,
) -> Callable[[jax.Array, jax.Array, jax.Array, Past], jax.Array]:
    """Attention of `new` tokens to themselves and the cache.

    Args:
        mask: [B, T] bool, False on padding; None: none that a token could see.
        window: a token sees itself and `window - 1` tokens before it.

    Returns:
        (queries [B, T, H, d], keys, values [B, T, K, d], past) -> head outputs [B, T, H, d]. A
        row that may see nothing (padding on the left) gets finite values.
    """
    if cache is None and mask is None:
        local = None if window is None else (window - 1, 0)

        def fresh(q: jax.Array, k: jax.Array, v: jax.Array, past: Past) -> jax.Array:
            return jax.nn.dot_product_attention(
                q, k, v, is_causal=True, local_window_size=local, implementation=kernel
            )

        return fresh
    start = 0 if cache is None else cache.length
    known = _ones(batch, new) if mask is None else mask
    if cache is not None:
        known = lax.dynamic_update_slice(cache.mask, known, (0, start))
    visible = known[:, None, None, :] & _earlier(start, new, known.shape[1], window)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, past: Past) -> jax.Array:
        if past is not None:
            k, v = (
                lax.dynamic_update_slice(old, fresh, (0, start, 0, 0))
                for old, fresh in zip(past, (k, v), strict=True)
            )
            if new == 1 and jax.default_backend() == "cpu":
                return _attend_one(q, k, v, visible)
        return jax.nn.dot_product_attention(q, k, v, mask=visible, implementation=kernel)

    return attend


def grow(cache: Cache | None, mask: jax.Array | None, keys: jax.Array, values: jax.Array) -> Cache:
    """The cache with the keys and values [L, B, T, K, d] of new tokens written behind the old."""
    batch, new = keys.shape[1:3]
    mask = _ones(batch, new) if mask is None else mask
    if cache is None:
        return Cache(keys, values, mask, jnp.int32(new))
    start = (0, 0, cache.length, 0, 0)
    return Cache(
        lax.dynamic_update_slice(cache.keys, keys.astype(cache.keys.dtype), start),
        lax.dynamic_update_slice(cache.values, values.astype(cache.values.dtype), start),
        lax.dynamic_update_slice(cache.mask, mask, (0, cache.length)),
        cache.length + new,
    )


def reserve(cache: Cache, more: int) -> Cache:
    """The cache with room for `more` further tokens."""
    room = [(0, 0), (0, 0), (0, more), (0, 0), (0, 0)]
    return Cache(
        jnp.pad(cache.keys, room),
        jnp.pad(cache.values, room),
        jnp.pad(cache.mask, room[1:3]),
        cache.length,
    )


def token_positions(batch: int, new: int, mask: jax.Array | None, cache: Cache | None) -> jax.Array:
    """How many tokens come before each, [B, T] int32; 0 on padding before the first."""
    counts = jnp.cumsum(_ones(batch, new) if mask is None else mask, axis=1, dtype=jnp.int32)
    earlier = 0 if cache is None else jnp.sum(cache.mask, 1, keepdims=True, dtype=jnp.int32)
    return jnp.maximum(earlier + counts - 1, 0)


def _attend_one(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
    """Attention of one new token [B, 1, H, d] to keys and values [B, S, K, d].

    On CPU, XLA would move each head's keys into columns, element by element. Heads are put before
    positions instead, which copies whole rows and lets the products read them as they lie.
    """
    batch, _, heads, size = q.shape
    k, v = lax.optimization_barrier((jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)))
    q = q.reshape(batch, k.shape[1], -1, size)  # [B, K, H / K, d]
    scores = jnp.einsum("bkgd,bksd->bkgs", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(visible, scores / size**0.5, 0.7 * jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgs,bksd->bkgd", weights, v).reshape(batch, 1, heads, size)


def _earlier(start: jax.Array | int, new: int, keys: int, window: int | None) -> jax.Array:
    """[T, S] bool: which keys aren't later than each query (and aren't too far back)."""
    query = start + jnp.arange(new)[:, None]
    key = jnp.arange(keys)[None, :]
    visible = key <= query
    return visible if window is None else visible & (key > query - window)


def _ones(batch: int, new: int) -> jax.Array:
    return jnp.ones((batch, new), bool)
