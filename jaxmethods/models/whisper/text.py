"""Whisper's decoder, and transcription, greedy or by beams: one program from features to tokens.

    x = E[ids] + P,  x += Attn(LN x),  x += Cross(LN x, encoded),  x += MLP(LN x),  E LN x

Keys and values of what was heard are computed once a clip; those of the tokens so far are cached as
in `models.decoder`. Parameters are `encoder`, and `decoder` with

    tokens [V, C]  positions [N, C]  final_norm/{scale, bias} layers/{attention, cross}/{query, key,
    value, out}  layers/mlp  layers/{attention, cross, mlp}_norm  (head [V, C] where it is another)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxmethods.models.attention import scaled_attention
from jaxmethods.models.decoder.attention import Cache, causal_attention, grow, reserve
from jaxmethods.models.decoder.beams import check_search, search
from jaxmethods.models.decoder.generation import Generated, is_lost
from jaxmethods.models.decoder.layer import Params, dense, over_layers
from jaxmethods.models.lookup import rows
from jaxmethods.models.norms import layer_norm
from jaxmethods.models.products import keep_products, rows_product
from jaxmethods.models.whisper.config import WhisperConfig
from jaxmethods.models.whisper.encoder import (
    encode,
    init_blocks,
    init_encoder,
    init_norm,
    joined,
    mlp,
    split,
)


class Heard(NamedTuple):
    """What the decoder attends to, of every layer."""

    keys: jax.Array
    """[L, B, T, H, d]."""
    values: jax.Array
    """[L, B, T, H, d]."""


class Decoded(NamedTuple):
    """What a pass over tokens gives."""

    logits: jax.Array
    """[B, N, V] float32."""
    cache: Cache


def cross_keys(params: Params, config: WhisperConfig, encoded: jax.Array) -> Heard:
    """Keys and values of what was heard, once for all tokens.

    Args:
        params: of encoder and decoder.
        config: sizes; static.
        encoded: [B, T, C].

    Returns:
        One stack over layers of each.
    """

    def one(layer: Params) -> tuple[jax.Array, jax.Array]:
        key, value = (dense(layer["cross"][name], encoded) for name in ("key", "value"))
        return split(key, config.text.heads), split(value, config.text.heads)

    return Heard(*lax.map(one, params["decoder"]["layers"]))


def decode(
    params: Params,
    config: WhisperConfig,
    ids: jax.Array,
    heard: Heard,
    *,
    cache: Cache | None = None,
) -> Decoded:
    """Logits of the tokens that follow.

    Args:
        params: of encoder and decoder.
        config: sizes; static.
        ids: [B, N] int; a multiple of the clips where several rows are about one, side by side.
        heard: of `cross_keys`.
        cache: tokens before these, with room for them (`attention.reserve`).

    Returns:
        Logits of all N, and the cache with them.
    """
    decoder, eps = params["decoder"], config.encoder.norm_eps
    batch, new = ids.shape
    beams = batch // max(heard.keys.shape[1], 1)  # rows about a clip
    start = 0 if cache is None else cache.length
    x = rows(decoder["tokens"], ids, "ids")
    x = x + rows(decoder["positions"], start + jnp.arange(new), "positions")
    causal = causal_attention(batch, new, None, cache)

    def body(x: jax.Array, inputs: tuple[Params, Any]) -> tuple[jax.Array, Any]:
        layer, (past, keys, values) = inputs
        normed = layer_norm(layer["attention_norm"], x, eps)
        own = layer["attention"]
        q, k, v = (
            split(dense(own[name], normed), config.text.heads) for name in ("query", "key", "value")
        )
        x = x + dense(own["out"], joined(causal(q, k, v, past)))
        normed = layer_norm(layer["cross_norm"], x, eps)
        q = split(dense(layer["cross"]["query"], normed), config.text.heads)
        # Beams of a clip hear the same: they are further queries to it.
        q = q.reshape(len(keys), beams * new, *q.shape[2:])  # [B, K N, H, d]
        found = scaled_attention(q, keys, values)
        found = found.reshape(batch, new, *found.shape[2:])  # [B K, N, H, d]
        x = x + dense(layer["cross"]["out"], joined(found))
        return x + mlp(layer["mlp"], layer_norm(layer["mlp_norm"], x, eps)), (k, v)

    past = None if cache is None else (cache.keys, cache.values)
    given = past, heard.keys, heard.values
    x, new_keys = over_layers(keep_products(body), x, decoder["layers"], given)
    x = layer_norm(decoder["final_norm"], x, eps)
    head = decoder["tokens"] if config.text.tied else decoder["head"]
    logits = rows_product(x, head.T, jnp.float32)
    return Decoded(logits, grow(cache, None, *new_keys))


def transcribe(
    params: Params,
    config: WhisperConfig,
    features: jax.Array,
    prompt: jax.Array,
    *,
    end: int,
    new_tokens: int = 224,
    suppressed: jax.Array | None = None,
    first_suppressed: jax.Array | None = None,
    beams: int = 1,
    length_penalty: float = 1.0,
    dtype: Any = None,
) -> Generated:
    """The most likely token after the other, until `end`, for every clip; or the best of beams.

    Where the model says NaN, as in half precision it may, a transcript ends.

    Args:
        params: of encoder and decoder.
        config: sizes; static.
        features: [B, M, F] log-mel.
        prompt: [N] int: start of transcript, language and task, no timestamps.
        end: the token that ends a transcript; static.
        new_tokens: at most that many; static.
        suppressed: [V] bool: tokens that are never said, timestamps among them.
        first_suppressed: [V] bool: tokens that a transcript doesn't begin with.
        beams: how many transcripts are followed at once (`decoder.beam_search`); 1: the greedy one.
            Probabilities are those among tokens that may be said. Static.
        length_penalty: power of the length that log probabilities of beams are divided by; static.
        dtype: of the encoder's computation; None: of the parameters.

    Returns:
        Tokens [B, new_tokens], `end` behind the end, and how many are the clip's own.

    Raises:
        ValueError: more tokens than positions, or no beams.
    """
    check_search(beams, new_tokens)
    room = config.text.positions - len(prompt) + 1
    if not 0 < new_tokens <= room:
        raise ValueError(f"new_tokens: expected 1 to {room} behind the prompt, got {new_tokens}")
    encoded = encode(params["encoder"], config.encoder, features, dtype=dtype).last
    batch = len(features)
    heard = cross_keys(params, config, encoded.astype(params["decoder"]["tokens"].dtype))
    never = jnp.zeros(config.text.vocab_size, bool) if suppressed is None else suppressed
    at_first = never if first_suppressed is None else never | first_suppressed
    first = decode(params, config, jnp.broadcast_to(prompt, (batch, len(prompt))), heard)

    if beams > 1:

        def extend(tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
            found = decode(params, config, tokens[:, None], heard, cache=cache)
            return jnp.where(never, -jnp.inf, found.logits[:, 0]), found.cache

        best = search(
            jnp.where(at_first, -jnp.inf, first.logits[:, -1]),
            first.cache,
            extend,
            beams=beams,
            new_tokens=new_tokens,
            length_penalty=length_penalty,
            end=end,
            pad=end,
        )
        return Generated(best.tokens[:, 0], best.lengths[:, 0])

    def likeliest(logits: jax.Array, banned: jax.Array) -> jax.Array:
        token = jnp.argmax(jnp.where(banned, -jnp.inf, logits), -1).astype(jnp.int32)
        return jnp.where(is_lost(logits), end, token)

    token = likeliest(first.logits[:, -1], at_first)
    tokens = jnp.full((batch, new_tokens), end, jnp.int32).at[:, 0].set(token)
    # An end token counts, as in `decoder.generate`.
    state = (jnp.int32(1), token, tokens, reserve(first.cache, new_tokens), token == end)

    def unfinished(state: Any) -> jax.Array:
        return (state[0] < new_tokens) & ~jnp.all(state[4])

    def step(state: Any) -> Any:
        number, last, tokens, cache, done = state
        found = decode(params, config, last[:, None], heard, cache=cache)
        token = jnp.where(done, end, likeliest(found.logits[:, 0], never))
        return (
            number + 1,
            token,
            tokens.at[:, number].set(token),
            found.cache,
            done | (token == end),
        )

    number, _, tokens, _, done = lax.while_loop(unfinished, step, state)
    ended = jnp.argmax(tokens == end, axis=1).astype(jnp.int32) + 1
    return Generated(tokens, jnp.where(done, ended, number))


def init_params(key: jax.Array, config: WhisperConfig, dtype: Any = jnp.float32) -> Params:
    """Random parameters of encoder and decoder: kernels and embeddings from N(0, 0.02^2).

    Args:
        key: typed random key [].
        config: sizes; static.
        dtype: of the parameters.

    Returns:
        A nested dict with stacked layers.
    """
    encoder, tokens, positions, blocks = jax.random.split(key, 4)
    width, text = config.encoder.width, config.text
    params = {
        "encoder": init_encoder(encoder, config.encoder, dtype),
        "decoder": {
            "tokens": 0.02 * jax.random.normal(tokens, (text.vocab_size, width), dtype),
            "positions": 0.02 * jax.random.normal(positions, (text.positions, width), dtype),
            "layers": init_blocks(
                blocks, text.layers, width, text.mlp_width, ("attention", "cross"), dtype
            ),
            "final_norm": init_norm((width,), dtype),
        },
    }
    if not text.tied:
        own = 0.02 * jax.random.normal(
            jax.random.fold_in(tokens, 1), (text.vocab_size, width), dtype
        )
        params["decoder"]["head"] = own
    return params
