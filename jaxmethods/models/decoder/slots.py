"""Generation in slots (continuous batching): a slot whose row has ended takes the next prompt.

A batch lasts as long as its longest answer, and rows that have ended wait for it. Here a fixed
number of slots decodes within one program of static shapes, and prompts that wait take the slots of
rows that have ended, without the host:

    while rows are left:
        where the cache is full: move it to the left, as far as the longest row allows
        where slots are free and prompts wait: compute the prompts' cache and write it there
        decode until a prompt can take a slot, the cache is full or all rows have ended

All rows end at one index of the cache, so that the decoder's own steps serve them: a prompt is
written right before it, behind padding, whenever it begins.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxmethods.models.decoder.attention import Cache
from jaxmethods.models.decoder.config import DecoderConfig
from jaxmethods.models.decoder.generation import (
    GREEDY,
    End,
    Sampling,
    check_positions,
    check_sampling,
    is_end,
    is_lost,
    left_padded,
    pick,
    row_keys,
)
from jaxmethods.models.decoder.layer import Params
from jaxmethods.models.decoder.network import forward
from jaxmethods.numerics.lazily import when

SHARE = 8
"""Slots are filled an eighth of all at once: prompts one by one would leave an accelerator idle,
and waiting for many leaves their slots idle."""


class Refilled(NamedTuple):
    """New tokens of every row, and what they took."""

    tokens: jax.Array
    """[B, N] int32; `pad` behind the end of a row."""
    lengths: jax.Array
    """[B] int32: how many of them are the row's, the end token included."""
    steps: jax.Array
    """[] int32: passes of all slots; a row's first token comes with its prompt."""


def generate_in_slots(
    params: Params,
    config: DecoderConfig,
    ids: jax.Array,
    key: jax.Array | None = None,
    *,
    new_tokens: int,
    slots: int,
    mask: jax.Array | None = None,
    sampling: Sampling = GREEDY,
    end: End = None,
    pad: int = 0,
    dtype: Any = None,
) -> Refilled:
    """Continues many prompts, `slots` at a time: the rows of `generate`, in fewer steps.

    Args:
        params: parameters, see `init_params`.
        config: sizes and family of the decoder.
        ids: [B, T] int prompts, all that there are.
        key: random key, or one for each row [B]; None where the most likely token is taken.
        new_tokens: N of a row, at least 1; static.
        slots: rows that decode at once; static. The cache has room for as many.
        mask: [B, T], False on padding, wherever it is. A row without a token gets none, and one
            goes on no further where the model says NaN.
        sampling: temperature, top_k and top_p; by default the most likely token is taken.
        end: the token that ends a row, or several of which any does; None: none does.
        pad: what stands behind the end.
        dtype: of the computation; None: of the parameters.

    Returns:
        Tokens [B, N] int32, the length of each row, and the number of steps.

    Raises:
        ValueError: fewer than one slot or new token, prompts without any, a sampling out of range,
            no key or no typed one where tokens are drawn, more tokens than learned positions.
    """
    if slots < 1:
        raise ValueError(f"slots: expected 1 or more, got {slots}")
    if new_tokens < 1:
        raise ValueError(f"new_tokens: expected 1 or more, got {new_tokens}")
    if ids.shape[1] == 0:
        raise ValueError("ids: expected prompts of at least one token, got none")
    check_sampling(sampling)
    check_positions(config, ids.shape[1], new_tokens, mask)
    rows, size = ids.shape
    room, slots = size + new_tokens, min(slots, rows)
    keys = row_keys(key, rows, sampling)
    if rows == 0:
        nothing = jnp.zeros((0, new_tokens), jnp.int32)
        return Refilled(nothing, nothing[:, 0], jnp.int32(0))
    at_once = -(-slots // SHARE)
    mask = jnp.ones(ids.shape, bool) if mask is None else mask
    ids, where = left_padded(ids, mask)
    assert where is not None
    begun = jnp.any(where, axis=1)  # [B]

    def prefill(chosen: jax.Array) -> Any:
        last = jnp.full((len(chosen), 1), size - 1)
        return forward(
            params,
            config,
            ids[chosen],
            mask=where[chosen],
            logits_at=last,
            keep_cache=True,
            dtype=dtype,
        )

    def record(state: _Slots, logits: jax.Array, at: jax.Array) -> _Slots:
        """The next token of the slots `at` [M]."""
        row, made = _taken(state.row, at, rows), _taken(state.made, at, 0)
        own = None if keys is None else keys[jnp.minimum(row, rows - 1)]
        lost = is_lost(logits)
        token = jnp.where(lost, pad, pick(logits, own, made, sampling))
        over = lost | is_end(token, end) | (made + 1 >= new_tokens)
        return _recorded(state, at, token, over, made + ~lost)

    def fill(state: _Slots) -> _Slots:
        free = jnp.nonzero(state.row == rows, size=at_once, fill_value=slots)[0]
        chosen = state.next + jnp.arange(at_once, dtype=jnp.int32)
        there = chosen < rows
        chosen = jnp.minimum(chosen, rows - 1)
        at = jnp.where(there & begun[chosen], free, slots)  # [M]
        found = prefill(chosen)
        state = state._replace(
            cache=_written(state.cache, found.cache, at),
            row=state.row.at[at].set(chosen, mode="drop"),
            made=state.made.at[at].set(0, mode="drop"),
            next=state.next + jnp.sum(there),
        )
        return record(state, found.logits[:, 0], at)

    def fillable(state: _Slots) -> jax.Array:
        wanted = jnp.minimum(at_once, rows - state.next)
        return (wanted > 0) & (jnp.sum(state.row == rows) >= wanted)

    def decode(state: _Slots) -> _Slots:
        out = forward(params, config, state.last[:, None], cache=state.cache, dtype=dtype)
        state = state._replace(cache=out.cache, steps=state.steps + 1)
        return record(state, out.logits[:, 0], jnp.arange(slots))

    def goes_on(state: _Slots) -> jax.Array:
        busy = jnp.any(state.row < rows) & (state.cache.length < room)
        return busy & ~fillable(state)

    def turn(state: _Slots) -> _Slots:
        longest = size + jnp.max(jnp.where(state.row < rows, state.made - 1, 0))
        full = state.cache.length == room
        cache = when(full, lambda: _moved(state.cache, longest), state.cache)
        state = state._replace(cache=cache)
        state = when(fillable(state), lambda: fill(state), state)
        return lax.while_loop(goes_on, decode, state)

    def unfinished(state: _Slots) -> jax.Array:
        return (state.next < rows) | jnp.any(state.row < rows)

    shapes = jax.eval_shape(lambda: prefill(jnp.zeros(slots, jnp.int32)).cache)
    start = _empty(shapes, rows, new_tokens, pad)
    finished = lax.while_loop(unfinished, turn, start)
    return Refilled(finished.tokens, finished.lengths, finished.steps)


class _Slots(NamedTuple):
    cache: Cache
    """[S] rows of T + N tokens."""
    row: jax.Array
    """[S] int32: which prompt each slot continues; B: none."""
    made: jax.Array
    """[S] int32: new tokens of it so far, of which the last isn't in the cache yet."""
    last: jax.Array
    """[S] int32."""
    tokens: jax.Array
    lengths: jax.Array
    next: jax.Array
    """[] int32: the first prompt that waits."""
    steps: jax.Array


def _empty(prompts: Cache, rows: int, new_tokens: int, pad: int) -> _Slots:
    """Slots that nothing has taken yet; the cache has room for such prompts and new tokens."""
    slots, size = prompts.mask.shape
    shape = (*prompts.keys.shape[:3], size + new_tokens, prompts.keys.shape[4])
    return _Slots(
        cache=Cache(
            jnp.zeros(shape, prompts.keys.dtype),
            jnp.zeros(shape, prompts.values.dtype),
            jnp.zeros((slots, size + new_tokens), bool),
            jnp.int32(size),
        ),
        row=jnp.full(slots, rows, jnp.int32),
        made=jnp.zeros(slots, jnp.int32),
        last=jnp.zeros(slots, jnp.int32),
        tokens=jnp.full((rows, new_tokens), pad, jnp.int32),
        lengths=jnp.zeros(rows, jnp.int32),
        next=jnp.int32(0),
        steps=jnp.int32(0),
    )


def _taken(leaf: jax.Array, at: jax.Array, otherwise: int) -> jax.Array:
    """[S] at slots [M]; a slot past the last one is none."""
    return leaf.at[at].get(mode="fill", fill_value=otherwise)


def _recorded(
    state: _Slots, at: jax.Array, token: jax.Array, over: jax.Array, length: jax.Array
) -> _Slots:
    """The state with a token more of the slots `at` [M], which of their rows are over, and their
    lengths."""
    rows = len(state.lengths)
    row, made = _taken(state.row, at, rows), _taken(state.made, at, 0)
    return state._replace(
        last=state.last.at[at].set(token, mode="drop"),
        tokens=state.tokens.at[row, made].set(token, mode="drop"),
        lengths=state.lengths.at[row].set(length, mode="drop"),
        made=state.made.at[at].set(made + 1, mode="drop"),
        row=state.row.at[at].set(jnp.where(over, rows, row), mode="drop"),
    )


def _moved(cache: Cache, length: jax.Array) -> Cache:
    """The cache with `length` tokens: those before are let go, and all rows moved to the left."""
    by = length - cache.length
    # What comes around stands behind the end, where nothing has been written.
    mask = jnp.arange(cache.mask.shape[1]) < length
    return Cache(
        jnp.roll(cache.keys, by, axis=3),
        jnp.roll(cache.values, by, axis=3),
        jnp.roll(cache.mask, by, axis=1) & mask,
        length,
    )


def _written(cache: Cache, prompts: Cache, at: jax.Array) -> Cache:
    """The cache with prompts [L, M, K, T, d] as the last tokens of the slots `at` [M]."""
    start = cache.length - prompts.mask.shape[1]

    def whole(new: jax.Array, like: jax.Array, axis: int) -> jax.Array:
        shape = (*new.shape[:axis], like.shape[axis], *new.shape[axis + 1 :])
        return lax.dynamic_update_slice_in_dim(jnp.zeros(shape, new.dtype), new, start, axis)

    return cache._replace(
        keys=cache.keys.at[:, at].set(whole(prompts.keys, cache.keys, 3), mode="drop"),
        values=cache.values.at[:, at].set(whole(prompts.values, cache.values, 3), mode="drop"),
        mask=cache.mask.at[at].set(whole(prompts.mask, cache.mask, 1), mode="drop"),
    )
