"""Generation with a cache: prefill once, then one program that decodes until all rows are done."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from jaxmethods.models.decoder.attention import reserve
from jaxmethods.models.decoder.config import DecoderConfig
from jaxmethods.models.decoder.layer import Params
from jaxmethods.models.decoder.network import forward
from jaxmethods.numerics.order_statistics import largest


class Sampling(NamedTuple):
    """How the next token is drawn; hashable, a static argument."""

    temperature: float = 0.0
    """0: the most likely token."""
    top_k: int = 0
    """Draw from the k most likely tokens; 0: from all."""
    top_p: float = 1.0
    """Draw from the smallest set of most likely tokens that holds this much probability, in
    [0, 1]; one token at least."""


End: TypeAlias = int | tuple[int, ...] | None
"""Tokens that end a row; hashable, a static argument."""
GREEDY = Sampling()
NUCLEUS_SLACK = 1e-6
"""Rounding of a sum of probabilities in float32."""


class Generated(NamedTuple):
    """New tokens of every row."""

    tokens: jax.Array
    """[B, N] int32; `pad` behind the end of a row."""
    lengths: jax.Array
    """[B] int32: how many of them are the row's, the end token included."""


def generate(
    params: Params,
    config: DecoderConfig,
    ids: jax.Array | None = None,
    key: jax.Array | None = None,
    *,
    new_tokens: int,
    mask: jax.Array | None = None,
    inputs_embeds: jax.Array | None = None,
    sampling: Sampling = GREEDY,
    end: End = None,
    pad: int = 0,
    dtype: Any = None,
) -> Generated:
    """Continues prompts by up to `new_tokens` tokens, or up to and including `end`.

    A row's result depends neither on the padding nor on the rows beside it. A row without a token
    gets none (length 0, all `pad`): nothing says how it would begin. So does one go on no further
    where the model says NaN.

    Args:
        params: parameters, see `init_params`.
        config: sizes and family of the decoder.
        ids: [B, T] int prompts; None with `inputs_embeds`.
        key: random key, or one for each row [B]; None where the most likely token is taken.
        new_tokens: N, static; 0 gives none.
        mask: [B, T], False on padding, wherever it is.
        inputs_embeds: [B, T, D] in place of embeddings of ids.
        sampling: temperature, top_k and top_p; by default the most likely token is taken.
        end: the token that ends a row, or several of which any does; None: none does.
        pad: what stands behind the end.
        dtype: of the computation; None: of the parameters.

    Returns:
        Tokens [B, N] int32, and the length of each row.

    Raises:
        ValueError: a negative number of tokens, prompts without any, a sampling out of range, no
            key or no typed one where tokens are drawn, more tokens than learned positions.
    """
    given = [prompt for prompt in (ids, inputs_embeds) if prompt is not None]
    if len(given) != 1:
        raise ValueError(f"expected either ids or inputs_embeds, got {len(given)} of them")
    rows, length = given[0].shape[:2]
    if new_tokens < 0:
        raise ValueError(f"new_tokens: expected 0 or more, got {new_tokens}")
    if length == 0:
        raise ValueError("ids: expected prompts of at least one token, got none")
    check_sampling(sampling)
    keys = row_keys(key, rows, sampling)
    check_positions(config, length, new_tokens, mask)
    if new_tokens == 0:
        return Generated(jnp.zeros((rows, 0), jnp.int32), jnp.zeros(rows, jnp.int32))
    prompt, mask = left_padded(given[0], mask)
    begun = jnp.ones(rows, bool) if mask is None else jnp.any(mask, axis=1)
    named: dict[str, Any] = {"ids" if inputs_embeds is None else "inputs_embeds": prompt}
    last = jnp.full((prompt.shape[0], 1), prompt.shape[1] - 1)
    first = forward(
        params, config, **named, mask=mask, logits_at=last, keep_cache=True, dtype=dtype
    )

    def unfinished(state: _Decoding) -> jax.Array:
        return (state.step < new_tokens) & ~jnp.all(state.done)

    def decode(state: _Decoding) -> _Decoding:
        out = forward(params, config, state.last[:, None], cache=state.cache, dtype=dtype)
        over = state.done | is_lost(out.logits[:, 0])
        token = jnp.where(over, pad, pick(out.logits[:, 0], keys, state.step, sampling))
        return _Decoding(
            step=state.step + 1,
            last=token,
            tokens=state.tokens.at[:, state.step].set(token),
            cache=out.cache,
            done=over | is_end(token, end),
            lengths=state.lengths + ~over,
        )

    begun &= ~is_lost(first.logits[:, 0])
    token = jnp.where(begun, pick(first.logits[:, 0], keys, 0, sampling), pad)
    start = _Decoding(
        step=jnp.int32(1),
        last=token,
        tokens=jnp.full((prompt.shape[0], new_tokens), pad, jnp.int32).at[:, 0].set(token),
        cache=reserve(first.cache, new_tokens),
        done=~begun | is_end(token, end),
        lengths=begun.astype(jnp.int32),
    )
    finished = lax.while_loop(unfinished, decode, start)
    return Generated(finished.tokens, finished.lengths)


class _Decoding(NamedTuple):
    step: jax.Array
    last: jax.Array
    tokens: jax.Array
    cache: Any
    done: jax.Array
    lengths: jax.Array


def is_end(tokens: jax.Array, end: End) -> jax.Array:
    """Bool like `tokens`: which of them end a row."""
    ends = end if isinstance(end, tuple | list) else () if end is None else (end,)
    return reduce(jnp.logical_or, [tokens == one for one in ends], jnp.zeros(tokens.shape, bool))


def is_lost(logits: jax.Array) -> jax.Array:
    """[B] bool: rows of logits [B, V] that hold NaN, whose argmax would be the first of it."""
    return jnp.isnan(logits).any(-1)


def pick(logits: jax.Array, keys: Any, step: Any, sampling: Sampling) -> jax.Array:
    """The next token of every row.

    Args:
        logits: [B, V].
        keys: one key for each row, folded with `step`; unused where the most likely is taken.
        step: [] int, the number of the token, or one for each row [B].
        sampling: how it is chosen; static.

    Returns:
        [B] int32.
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    logits = restrict(_tempered(logits, sampling.temperature), sampling.top_k, sampling.top_p)
    keys = jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(step, keys.shape))
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def restrict(logits: jax.Array, top_k: int = 0, top_p: Any = 1.0) -> jax.Array:
    """Logits [..., V] with -inf outside the k most likely tokens and the nucleus of mass p.

    The nucleus (Holtzman et al., "The Curious Case of Neural Text Degeneration", arXiv 1904.09751)
    is the smallest set of most likely tokens that holds at least p (to 1e-6); it has one token at
    least.
    """
    if 0 < top_k < logits.shape[-1]:
        least = largest(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    if not isinstance(top_p, float | int) or top_p < 1:  # may be traced
        order = jnp.argsort(-logits, axis=-1, stable=True)
        ordered = jnp.take_along_axis(logits, order, -1)
        # Half precision would not see the small ones in the sum.
        probability = jax.nn.softmax(ordered.astype(jnp.promote_types(ordered.dtype, "float32")))
        before = jnp.cumsum(probability, -1) - probability
        # Half of 20 equal tokens are 10, whatever the sum's last bits are.
        kept = (before < top_p - NUCLEUS_SLACK).at[..., 0].set(True)
        place = jnp.argsort(order, axis=-1)
        logits = jnp.where(jnp.take_along_axis(kept, place, -1), logits, -jnp.inf)
    return logits


def check_sampling(sampling: Sampling) -> None:
    """Raises `ValueError` for a temperature, top_k or top_p that means nothing."""
    if not 0 <= sampling.temperature < math.inf:
        raise ValueError(
            f"sampling.temperature: expected a finite number of at least 0, "
            f"got {sampling.temperature}"
        )
    if sampling.top_k < 0:
        raise ValueError(f"sampling.top_k: expected 0 (all tokens) or more, got {sampling.top_k}")
    if not isinstance(sampling.top_p, Tracer) and not 0 <= sampling.top_p <= 1:
        raise ValueError(f"sampling.top_p: expected a share in [0, 1], got {sampling.top_p}")


def _tempered(logits: jax.Array, temperature: float) -> jax.Array:
    """Logits over the temperature, shifted where a tiny one would make the largest infinite."""
    temperature = max(temperature, float(jnp.finfo(logits.dtype).tiny))
    largest = jnp.max(logits, axis=-1, keepdims=True)
    return (logits - jnp.where(jnp.isfinite(largest / temperature), 0, largest)) / temperature


def check_positions(
    config: DecoderConfig, length: int, new_tokens: int, mask: jax.Array | None
) -> None:
    """Refuses more tokens than a model has learned positions for.

    The last new token is never fed, so that a table of P positions allows P + 1 tokens.

    Args:
        config: of the decoder.
        length: T, of the prompts.
        new_tokens: N.
        mask: [B, T], False on padding; None: there is none.

    Raises:
        ValueError: there are more.
    """
    if config.positions != "learned" or isinstance(mask, Tracer):
        return
    longest = length if mask is None else int(jnp.max(jnp.sum(mask != 0, axis=1), initial=0))
    if longest + new_tokens - 1 > config.max_positions:
        raise ValueError(
            f"new_tokens: a prompt of {longest} tokens and {new_tokens} new ones are more than the "
            f"model's {config.max_positions} learned positions; shorten it or ask for fewer"
        )


def left_padded(prompt: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    """Moves the padding of [B, T, ...] to the left, so that all rows are continued at one index."""
    if mask is None:
        return prompt, None
    mask = mask.astype(bool)
    order = jnp.argsort(mask, axis=1, stable=True)  # padding first, tokens in their order
    return jax.vmap(lambda row, where: row[where])(prompt, order), jnp.sort(mask, axis=1)


def row_keys(key: jax.Array | None, rows: int, sampling: Sampling) -> jax.Array | None:
    """A key for each row [rows], where tokens are drawn; None where the most likely is taken."""
    if sampling.temperature == 0:
        return None
    if key is None:
        raise ValueError("key: is needed to draw tokens (temperature > 0)")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"key: expected a typed one (jax.random.key), got {key.dtype} numbers")
    if key.shape not in ((), (rows,)):
        raise ValueError(f"key: expected one, or one for each of {rows} rows, got {key.shape}")
    return jax.random.split(key, rows) if key.ndim == 0 else key
