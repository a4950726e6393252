"""Causal attention over new tokens and a cache of earlier ones, and what a token may see.

A cache has its heads before its tokens, so that a head's keys lie side by side and decoding is one
batched product, and it is read as it is: new tokens are scored beside it and written once, behind
the last layer. On CPU that is several times faster than writing them into every layer's cache
first, which copies it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from jaxmethods.models.attention import Kernel, scaled_attention

Past: TypeAlias = tuple[jax.Array, jax.Array] | None
"""Cached keys and values of one layer, [B, K, S, d] each."""


class Cache(NamedTuple):
    """Keys and values of the tokens so far; one write index serves all rows."""

    keys: jax.Array
    """[L, B, K, S, d], rotated."""
    values: jax.Array
    """[L, B, K, S, d]."""
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
    segments: jax.Array | None = None,
) -> Callable[[jax.Array, jax.Array, jax.Array, Past], jax.Array]:
    """Attention of `new` tokens to themselves and the cache.

    Args:
        batch: B.
        new: T.
        mask: [B, T] bool, False on padding; None: none that a token could see.
        cache: what was seen before; None: nothing.
        window: a token sees itself and `window - 1` tokens before it. Padding, between tokens or in
            the cache, is not counted.
        kernel: of attention without a cache.
        segments: [B, T] int: a token sees its own segment only; without a cache.

    Returns:
        (queries [B, T, H, d], keys, values [B, T, K, d], past) -> head outputs [B, T, H, d]. A
        row that may see nothing (padding on the left) gets finite values.

    Raises:
        ValueError: segments and a cache.
    """
    if cache is None and mask is None and segments is None:

        def fresh(q: jax.Array, k: jax.Array, v: jax.Array, past: Past) -> jax.Array:
            return scaled_attention(q, k, v, causal=True, window=window, kernel=kernel)

        return fresh
    if cache is None:
        fresh_visible = visible_tokens(batch, new, mask, window, segments)

        def masked(q: jax.Array, k: jax.Array, v: jax.Array, past: Past) -> jax.Array:
            return scaled_attention(q, k, v, mask=fresh_visible[:, None], kernel=kernel)

        return masked
    if segments is not None:
        raise ValueError("segments: expected none with a cache, whose tokens have no segment")
    fresh_visible = visible_tokens(batch, new, mask, window)
    fresh_place, cached_place = _ordinals(_ones(batch, new) if mask is None else mask, cache)
    cached = cache.mask[:, None, :] & _earlier(cache.length, new, cache.mask.shape[1])
    if window is not None:
        cached &= _near(fresh_place, cached_place, window)
    visible = jnp.concatenate([cached, fresh_visible], axis=-1)  # [B, T, S + T]

    def cached_attention(q: jax.Array, k: jax.Array, v: jax.Array, past: Past) -> jax.Array:
        assert past is not None
        return _attend_beside(visible, past, q, k, v)

    return cached_attention


def visible_tokens(
    batch: int,
    new: int,
    mask: jax.Array | None,
    window: int | None = None,
    segments: jax.Array | None = None,
) -> jax.Array:
    """Which of `new` tokens each of them may see.

    Args:
        batch: B.
        new: T.
        mask: [B, T] bool, False on padding; None: all are tokens.
        window: see `causal_attention`.
        segments: [B, T] int; None: a row is one segment.

    Returns:
        [B, T, T] bool, from the token that looks to the one that is seen.
    """
    known = _ones(batch, new) if mask is None else mask
    visible = known[:, None, :] & _earlier(0, new, new)
    if window is not None:
        place = _ordinals(known, None)[0]
        visible &= _near(place, place, window)
    if segments is not None:
        visible &= segments[:, :, None] == segments[:, None, :]
    return visible


def read_attention(
    visible: jax.Array, added: jax.Array | None, q: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Attention whose probabilities come out, and can be changed.

    Args:
        visible: [B, T, T] bool, see `visible_tokens`.
        added: [B, T, H, T], added to the probabilities; None: nothing. The gradient to it is the
            gradient to them.
        q: queries [B, T, H, d].
        k: keys [B, T, K, d].
        v: values [B, T, K, d].

    Returns:
        Head outputs [B, T, H, d], and probabilities [B, T, H, T] float32. A token that sees nothing
        has equal ones.
    """
    (batch, new, heads, width), groups = q.shape, k.shape[2]
    grouped = q.reshape(batch, new, groups, heads // groups, width)  # [B, T, K, G, d]
    scores = jnp.einsum("btkgd,bskd->btkgs", grouped, k, preferred_element_type=jnp.float32)
    # Finite, so that a row that sees nothing isn't NaN.
    least = -0.7 * jnp.finfo(scores.dtype).max
    scores = jnp.where(visible[:, :, None, None], scores * width**-0.5, least)
    weights = jax.nn.softmax(scores, axis=-1).reshape(batch, new, heads, new)  # [B, T, H, T]
    if added is not None:
        weights = weights + added
    used = weights.reshape(batch, new, groups, heads // groups, new)  # [B, T, K, G, T]
    found = jnp.einsum("btkgs,bskd->btkgd", used.astype(v.dtype), v)
    return found.reshape(q.shape), weights


def _attend_beside(
    visible: jax.Array, past: tuple[jax.Array, jax.Array], q: jax.Array, k: jax.Array, v: jax.Array
) -> jax.Array:
    """Attention of q [B, T, H, d] to a layer's cache and k, v [B, T, K, d], as `visible` says."""
    (batch, new, heads, width), size = k.shape, past[0].shape[2]
    group = q.shape[2] // heads  # said, not inferred: an empty array has no size to infer it from
    grouped = jnp.moveaxis(q.reshape(batch, new, heads, group, width), 1, 3)  # [B, K, G, T, d]
    rows = grouped.reshape(batch, heads, group * new, width)  # [B, K, G T, d]

    def products(keys: jax.Array) -> jax.Array:
        return _each_head(rows, keys.astype(q.dtype), 3, jnp.float32).reshape(
            *grouped.shape[:4], keys.shape[2]
        )

    # [B, K, G, T, S + T]
    scores = jnp.concatenate([products(past[0]), products(jnp.swapaxes(k, 1, 2))], axis=-1)
    scores = scores * width**-0.5
    # Finite, so that a row that sees nothing isn't NaN.
    scores = jnp.where(visible[:, None, None], scores, -0.7 * jnp.finfo(scores.dtype).max)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    weights = weights.reshape(batch, heads, group * new, size + new)  # [B, K, G T, S + T]
    found = _each_head(weights[..., :size], past[1].astype(v.dtype), 2)  # [B, K, G T, d]
    found = found + _each_head(weights[..., size:], jnp.swapaxes(v, 1, 2), 2)
    return jnp.moveaxis(found.reshape(grouped.shape), 3, 1).reshape(q.shape)  # [B, T, H, d]


def _each_head(rows: jax.Array, tokens: jax.Array, axis: int, dtype: Any = None) -> jax.Array:
    """Products of [B, K, R, n] and [B, K, S, d] over n and the axis of tokens that it is.

    An einsum would put the cache first and transpose it.
    """
    contract = ((3,), (axis,))
    return lax.dot_general(rows, tokens, (contract, ((0, 1), (0, 1))), preferred_element_type=dtype)


def grow(cache: Cache | None, mask: jax.Array | None, keys: jax.Array, values: jax.Array) -> Cache:
    """The cache with the keys and values of new tokens written behind the old.

    Args:
        cache: None: one that has exactly these tokens is made.
        mask: [B, T] bool, False on padding; None: all are tokens.
        keys, values: [L, B, T, K, d] of the new tokens.

    Returns:
        A cache of the same shapes.

    Raises:
        ValueError: no room for them. Where a program is compiled, which cannot raise, the keys
            become NaN: written over the last tokens they would give a wrong answer.
    """
    batch, new = keys.shape[1:3]
    mask = _ones(batch, new) if mask is None else mask
    keys, values = jnp.swapaxes(keys, 2, 3), jnp.swapaxes(values, 2, 3)  # [L, B, K, T, d]
    if cache is None:
        return Cache(keys, values, mask, jnp.int32(new))
    room = cache.mask.shape[1]
    traced = isinstance(cache.length, Tracer)
    if new > room or (not traced and cache.length + new > room):
        raise ValueError(
            f"cache: expected room for {new} further tokens, got {room} places"
            f"{'' if traced else f' with {int(cache.length)} taken'}; attention.reserve makes some"
        )
    keys = jnp.where(cache.length + new <= room, keys, jnp.nan)

    def written(old: jax.Array, more: jax.Array, axis: int) -> jax.Array:
        more = more.astype(old.dtype)
        return lax.dynamic_update_slice_in_dim(old, more, cache.length, axis)

    return Cache(
        written(cache.keys, keys, 3),
        written(cache.values, values, 3),
        written(cache.mask, mask, 1),
        cache.length + new,
    )


def reserve(cache: Cache, more: int) -> Cache:
    """The cache with room for `more` further tokens."""
    room = [(0, 0), (0, 0), (0, 0), (0, more), (0, 0)]
    return Cache(
        jnp.pad(cache.keys, room),
        jnp.pad(cache.values, room),
        jnp.pad(cache.mask, room[2:4]),
        cache.length,
    )


def token_positions(
    batch: int,
    new: int,
    mask: jax.Array | None,
    cache: Cache | None,
    segments: jax.Array | None = None,
) -> jax.Array:
    """How many tokens come before each.

    Args:
        batch: B.
        new: T.
        mask: [B, T] bool, False on padding; None: all are tokens.
        cache: what came before; None: nothing.
        segments: [B, T] int, each one run of equal numbers, which begins anew at 0; without a
            cache. None: a row is one segment.

    Returns:
        [B, T] int32; 0 on padding before the first.
    """
    known = _ones(batch, new) if mask is None else mask
    places = _ordinals(known, cache)[0]
    if segments is not None:
        begins = segments != jnp.pad(segments[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
        before = jnp.where(begins, places - known, 0)  # tokens of other segments
        places = places - lax.cummax(before, axis=1)
    return jnp.maximum(places - 1, 0)


def _ordinals(known: jax.Array, cache: Cache | None) -> tuple[jax.Array, jax.Array]:
    """Number of tokens up to and with each new slot [B, T] and each slot of the cache [B, S]."""
    fresh = jnp.cumsum(known, axis=1, dtype=jnp.int32)
    if cache is None:
        return fresh, fresh[:, :0]
    cached = jnp.cumsum(cache.mask, axis=1, dtype=jnp.int32)
    return jnp.sum(cache.mask, 1, keepdims=True, dtype=jnp.int32) + fresh, cached


def _earlier(start: jax.Array | int, new: int, keys: int) -> jax.Array:
    """[T, S] bool: which keys aren't later than each query."""
    return jnp.arange(keys)[None, :] <= start + jnp.arange(new)[:, None]


def _near(queries: jax.Array, keys: jax.Array, window: int) -> jax.Array:
    """[B, T, S] bool: which keys [B, S] aren't too far back for each query [B, T], in tokens."""
    return keys[:, None, :] > queries[:, :, None] - window


def _ones(batch: int, new: int) -> jax.Array:
    return jnp.ones((batch, new), bool)
