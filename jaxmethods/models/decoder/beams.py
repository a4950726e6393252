"""Beam search with a cache: the K most likely continuations that a narrow search finds.

    score(y) = sum_t log p(y_t | x, y_<t),   kept: the K best of K V continuations in every step

A finished continuation stays among the K with its score until K better ones are found. At the end
they are ranked by score / length^penalty, which `transformers` divides by as well; it ranks so
while it searches, too, and keeps finished continuations apart. `search` takes any model that has a
cache; `models.whisper` is another one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from jaxmethods.models.decoder.attention import Cache, reserve
from jaxmethods.models.decoder.config import DecoderConfig
from jaxmethods.models.decoder.generation import End, check_positions, is_end, left_padded
from jaxmethods.models.decoder.layer import Params
from jaxmethods.models.decoder.network import forward

Extend: TypeAlias = Callable[[jax.Array, Cache], tuple[jax.Array, Cache]]
"""(tokens [R], cache of R rows) -> logits [R, V] of the next tokens, and the cache with these."""


class Beams(NamedTuple):
    """Continuations of every row, the best first."""

    tokens: jax.Array
    """[B, K, N] int32; `pad` behind the end."""
    lengths: jax.Array
    """[B, K] int32, the end token included; 0 where there are fewer than K continuations."""
    scores: jax.Array
    """[B, K] float32: log probabilities; -inf where there are fewer than K continuations."""


class _Search(NamedTuple):
    step: jax.Array
    last: jax.Array
    """[B, K] int32, chosen and not yet fed."""
    tokens: jax.Array
    cache: Cache
    """B K rows, those of a prompt side by side."""
    done: jax.Array
    lengths: jax.Array
    scores: jax.Array


def beam_search(
    params: Params,
    config: DecoderConfig,
    ids: jax.Array,
    *,
    beams: int,
    new_tokens: int,
    mask: jax.Array | None = None,
    length_penalty: float = 1.0,
    end: End = None,
    pad: int = 0,
    dtype: Any = None,
) -> Beams:
    """Continues prompts by up to `new_tokens` tokens, or up to and including `end`, K times.

    A row's result depends neither on the padding nor on the rows beside it. A row without a token
    gets none (length 0, all `pad`).

    Args:
        params: parameters, see `init_params`.
        config: sizes and family of the decoder.
        ids: [B, T] int prompts.
        beams: K, static.
        new_tokens: N, static.
        mask: [B, T], False on padding, wherever it is.
        length_penalty: power of the length that scores are divided by in the final order; 0 orders
            by probability.
        end: the token that ends a row, or several of which any does; None: none does.
        pad: what stands behind the end.
        dtype: of the computation; None: of the parameters.

    Returns:
        Continuations that differ, the best first.

    Raises:
        ValueError: no beams, no tokens, prompts without any, more tokens than learned positions.
    """
    if ids.shape[1] < 1:
        raise ValueError(f"ids: expected at least 1, got {ids.shape[1]}")
    check_search(beams, new_tokens)
    check_positions(config, ids.shape[1], new_tokens, mask)
    rows = ids.shape[0]
    prompt, mask = left_padded(ids, mask)
    begun = jnp.ones(rows, bool) if mask is None else jnp.any(mask, axis=1)
    last = jnp.full((rows, 1), prompt.shape[1] - 1)
    first = forward(params, config, prompt, mask=mask, logits_at=last, keep_cache=True, dtype=dtype)

    def extend(tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        out = forward(params, config, tokens[:, None], cache=cache, dtype=dtype)
        return out.logits[:, 0], out.cache

    return search(
        first.logits[:, 0],
        first.cache,
        extend,
        beams=beams,
        new_tokens=new_tokens,
        length_penalty=length_penalty,
        end=end,
        pad=pad,
        begun=begun,
    )


def check_search(beams: int, new_tokens: int) -> None:
    """Raises `ValueError` for no beams or no tokens."""
    for name, value in {"beams": beams, "new_tokens": new_tokens}.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")


def search(
    first: jax.Array,
    cache: Cache,
    extend: Extend,
    *,
    beams: int,
    new_tokens: int,
    length_penalty: float = 1.0,
    end: End = None,
    pad: int = 0,
    begun: jax.Array | None = None,
) -> Beams:
    """The search itself, over any model with a cache.

    Args:
        first: [B, V] logits of the first token behind the prompts.
        cache: of the prompts, without room.
        extend: (tokens [B K], cache) -> logits [B K, V] of the next, and the grown cache; rows of
            one prompt lie side by side. A logit of -inf is never chosen.
        beams: K, static.
        new_tokens: N, static.
        length_penalty: see `beam_search`.
        end: the token that ends a row, or several of which any does; None: none does.
        pad: what stands behind the end.
        begun: [B] bool, False for a row without a token; None: all have some.

    Returns:
        Continuations that differ, the best first.
    """

    def choose(state: _Search, logits: jax.Array) -> _Search:
        """Goes on with the best continuations; logits [B, K, V]."""
        scores, parents, tokens = best_continuations(state.scores, state.done, logits)
        done, lengths = (jnp.take_along_axis(x, parents, 1) for x in (state.done, state.lengths))
        written = jnp.take_along_axis(state.tokens, parents[..., None], 1)
        tokens = jnp.where(done, pad, tokens)
        return _Search(
            step=state.step + 1,
            last=tokens,
            tokens=written.at[:, :, state.step].set(tokens),
            cache=_regrouped(state.cache, parents),
            done=done | is_end(tokens, end),
            lengths=lengths + ~done,
            scores=scores,
        )

    def unfinished(state: _Search) -> jax.Array:
        return (state.step < new_tokens) & ~jnp.all(state.done)

    def further(state: _Search) -> _Search:
        logits, grown = extend(state.last.reshape(-1), state.cache)
        logits = logits.reshape(*state.last.shape, logits.shape[-1])
        return choose(state._replace(cache=grown), logits)

    begun = jnp.ones(len(first), bool) if begun is None else begun
    start = choose(
        _begin(cache, begun, beams, new_tokens, pad), jnp.repeat(first[:, None], beams, axis=1)
    )
    return _ranked(lax.while_loop(unfinished, further, start), length_penalty, pad)


def _ranked(found: _Search, length_penalty: float, pad: int) -> Beams:
    """What was found, the best first."""
    length = jnp.maximum(found.lengths, 1).astype(jnp.float32)
    order = jnp.argsort(-found.scores / length**length_penalty, axis=1, stable=True)
    exists = jnp.isfinite(found.scores)
    tokens = jnp.where(exists[..., None], found.tokens, pad)
    lengths = jnp.where(exists, found.lengths, 0)
    return Beams(
        jnp.take_along_axis(tokens, order[..., None], 1),
        *(jnp.take_along_axis(leaf, order, 1) for leaf in (lengths, found.scores)),
    )


def best_continuations(
    scores: jax.Array, done: jax.Array, logits: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The K best of all continuations of K beams by one token.

    Args:
        scores: [B, K] float32.
        done: [B, K] bool: such a beam has one continuation, itself.
        logits: [B, K, V], of the next token. A beam where one of them is NaN has no continuation.

    Returns:
        their scores, the beams they continue, and their tokens, [B, K] each; a tie goes to the
        earlier beam, then to the smaller token.
    """
    rows, beams, size = logits.shape
    more = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    more = jnp.where(jnp.isnan(more), -jnp.inf, more)  # the largest of all, for `top_k`
    itself = jnp.where(jnp.arange(size) == 0, 0.0, -jnp.inf)
    total = scores[..., None] + jnp.where(done[..., None], itself, more)  # [B, K, V]
    best, places = lax.top_k(total.reshape(rows, beams * size), beams)
    return best, places // size, places % size


def _begin(cache: Cache, begun: jax.Array, beams: int, new_tokens: int, pad: int) -> _Search:
    """One beam of each row has the score 0, the others none."""
    rows = len(begun)
    cache = reserve(cache, new_tokens)
    cache = Cache(
        jnp.repeat(cache.keys, beams, axis=1),
        jnp.repeat(cache.values, beams, axis=1),
        jnp.repeat(cache.mask, beams, axis=0),
        cache.length,
    )
    alone = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf)
    nothing = jnp.zeros((rows, beams), jnp.int32)
    return _Search(
        step=jnp.int32(0),
        last=nothing,
        tokens=jnp.full((rows, beams, new_tokens), pad, jnp.int32),
        cache=cache,
        done=jnp.broadcast_to(~begun[:, None], (rows, beams)),
        lengths=nothing,
        scores=jnp.broadcast_to(alone, (rows, beams)),
    )


def _regrouped(cache: Cache, parents: jax.Array) -> Cache:
    """The cache of the beams that are continued; masks of one row's beams are equal."""
    rows, beams = parents.shape

    def pick(leaf: jax.Array) -> jax.Array:
        grouped = leaf.reshape(leaf.shape[0], rows, beams, *leaf.shape[2:])  # [L, B, K, ...]
        where = parents.reshape(1, rows, beams, *[1] * (leaf.ndim - 2))
        return jnp.take_along_axis(grouped, where, axis=2).reshape(leaf.shape)

    return cache._replace(keys=pick(cache.keys), values=pick(cache.values))
