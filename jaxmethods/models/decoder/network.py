"""A decoder-only transformer to look inside: Llama, Mistral, Qwen, GPT-NeoX, OPT and CodeGen.

One functional network; what distinguishes the families are switches of `DecoderConfig`. Parameters
are a nested dict whose layers are stacked on the leading axis, so that one compiled layer runs
under `lax.scan`:

    embed/tokens [V, D] (and embed/positions)         head/kernel [D, V], absent if tied
    layers/attention/{query, key, value, out}/kernel  [L, D, H d], [L, D, K d] x 2, [L, H d, D]
    layers/mlp/{gate, up, down}/kernel                [L, D, F] x 2, [L, F, D]
    layers/{attention_norm, mlp_norm}/scale           [L, D]; biases beside kernels and scales

With B sequences of T tokens, width D, H query heads and K key-value heads of d dimensions:

    config, params = decoder.load("path/to/model")
    outputs = decoder.forward(params, config, ids, taps=("hidden", "head_outputs"))
    outputs.head_outputs  # [L, B, T, H, d]

Whatever is read inside comes out as one array with the layers in front. On CPU, `unstack_layers`
makes decoding about twice as fast: a scanned layer is first copied out of its stack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxmethods.layout import Rule
from jaxmethods.models.attention import Kernel
from jaxmethods.models.decoder.attention import (
    Cache,
    causal_attention,
    grow,
    read_attention,
    token_positions,
    visible_tokens,
)
from jaxmethods.models.decoder.config import DecoderConfig
from jaxmethods.models.decoder.layer import Inside, Params, normalize, over_layers, run_layer
from jaxmethods.models.decoder.rope import rotation
from jaxmethods.models.lookup import rows
from jaxmethods.models.products import keep_products, rows_product

Tap: TypeAlias = Literal["hidden", "head_outputs", "head_norms", "mlp_outputs", "attention"]
TAPS = ("hidden", "head_outputs", "head_norms", "mlp_outputs")
"""Taps that any pass has. `attention` besides makes probabilities be there, without a cache."""

RULES = (
    Rule(r"(query|key|value|gate|up)/kernel$", (None, "fsdp", "tensor")),
    Rule(r"(query|key|value|gate|up)/bias$", (None, "tensor")),
    Rule(r"(out|down)/kernel$", (None, "tensor", "fsdp")),
    Rule(r"embed/tokens$", ("fsdp", "tensor")),
    Rule(r"head/kernel$", ("fsdp", "tensor")),
)
"""Heads and MLP units are split over `tensor`, so that a layer needs two all-reduces."""


class Outputs(NamedTuple):
    """What a forward pass was asked for; None where it wasn't."""

    logits: Any
    """[B, T, V] float32, or [B, N, V] at `logits_at`; position t predicts token t + 1."""
    residual: jax.Array
    """[B, T, D]: the residual stream after the last layer, before the final norm."""
    cache: Any
    """A `Cache`."""
    hidden: Any
    """[L + 1, B, T, D]: the embeddings, then the residual stream after each layer, the last one
    after the final norm, as in `transformers`."""
    head_outputs: Any
    """[L, B, T, H, d]: the attention outputs before the output projection."""
    head_norms: Any
    """[L, B, T, H] float32: their Euclidean norms."""
    mlp_outputs: Any
    """[L, B, T, D]."""
    attention: Any = None
    """[L, B, T, H, T] float32: probabilities, from the token that looks to the one that is seen."""


def forward(
    params: Params,
    config: DecoderConfig,
    ids: jax.Array | None = None,
    *,
    inputs_embeds: jax.Array | None = None,
    mask: jax.Array | None = None,
    positions: jax.Array | None = None,
    cache: Cache | None = None,
    keep_cache: bool = False,
    logits: bool = True,
    logits_at: jax.Array | None = None,
    taps: Sequence[Tap] = (),
    taps_at: jax.Array | None = None,
    dtype: Any = None,
    kernel: Kernel | None = None,
    remat: bool = False,
    segments: jax.Array | None = None,
    attention_added: jax.Array | None = None,
) -> Outputs:
    """Runs the decoder.

    Args:
        params: parameters, see `init_params`.
        config: sizes and family of the decoder.
        ids: [B, T] int tokens; or `inputs_embeds` [B, T, D] in place of their embeddings.
        mask: [B, T] bool or 0/1, False on padding, wherever it is. A batch padded on the right
            needs none, since causality hides what comes later, unless its cache is kept or its
            frequencies are dynamic: these follow the number of a row's tokens.
        positions: [B, T] int; default: the number of tokens before, by `mask` and `cache`.
        cache: tokens so far; the T new ones see them. The returned cache holds both, so there
            must be room for T (`attention.reserve`).
        keep_cache: return a cache of these tokens (always, if one came in).
        logits: whether logits are wanted; `logits_at` [B, N] int: only at these positions.
        taps: what else is returned; `taps_at` [B, N] int: only at these positions.
        dtype: of the computation (default: of the parameters). Norms' statistics, softmax, head
            norms and logits are float32.
        kernel: of attention.
        remat: recompute each layer's inside in the backward pass.
        segments: [B, T] int: rows hold several sequences, runs of equal numbers that don't see each
            other and count their positions from 0; without a cache.
        attention_added: [L, B, T, H, T], added to the attention probabilities; without a cache. The
            gradient to zeros is the gradient to the probabilities.

    Returns:
        Logits [B, T, V] float32 (or [B, N, V]), the cache and what was tapped; None for what was
        not asked for.

    Raises:
        ValueError: an unknown tap, or what goes without a cache with one.
    """
    unknown = sorted(set(taps) - {*TAPS, "attention"})
    if unknown:
        known = ", ".join((*TAPS, "attention"))
        raise ValueError(f"taps: expected some of {known}, got {unknown[0]!r}")
    explicit = "attention" in taps or attention_added is not None
    if cache is not None and (explicit or segments is not None):
        raise ValueError("attention, attention_added, segments: expected none with a cache")
    dtype = jnp.dtype(dtype or params["embed"]["tokens"].dtype)
    batch, new = _tokens(ids, inputs_embeds).shape[:2]
    mask = None if mask is None else mask.astype(bool)
    if positions is None:
        positions = token_positions(batch, new, mask, cache, segments)
    embedded = embed(params, config, ids, inputs_embeds, positions, dtype)
    angles = rotation(config, positions, mask, segments) if config.positions == "rope" else None
    attend = _attention(batch, new, mask, cache, config, kernel, segments, explicit)

    def body(x: jax.Array, inputs: tuple) -> tuple[jax.Array, dict[str, Any]]:
        layer, past = inputs
        x, inside = run_layer(
            config, layer, x, angles, lambda q, k, v: attend(q, k, v, past), dtype
        )
        read: dict[str, Any] = {name: at(_tap(name, x, inside), taps_at) for name in taps}
        if keep_cache or cache is not None:
            read["cache"] = inside.keys, inside.values
        return x, read

    step = jax.checkpoint(body, prevent_cse=False) if remat else keep_products(body)
    past = attention_added if cache is None else (cache.keys, cache.values)
    x, read = over_layers(step, embedded, params["layers"], past)
    if "hidden" in taps:
        last = normalize(config, params["final_norm"], at(x, taps_at), dtype)
        ends = at(embedded, taps_at)[None], last[None].astype(x.dtype)
        read["hidden"] = jnp.concatenate([ends[0], read["hidden"][:-1], ends[1]])
    return Outputs(
        logits=logits_of(params, config, at(x, logits_at), dtype) if logits else None,
        residual=x,
        cache=grow(cache, mask, *read.pop("cache")) if "cache" in read else None,
        **{name: read.get(name) for name in (*TAPS, "attention")},
    )


def _attention(
    batch: int,
    new: int,
    mask: jax.Array | None,
    cache: Cache | None,
    config: DecoderConfig,
    kernel: Kernel | None,
    segments: jax.Array | None,
    explicit: bool,
) -> Callable[[jax.Array, jax.Array, jax.Array, Any], Any]:
    """Attention with the last argument a layer's past, or what is added to its probabilities."""
    if not explicit:
        return causal_attention(batch, new, mask, cache, config.sliding_window, kernel, segments)
    visible = visible_tokens(batch, new, mask, config.sliding_window, segments)
    return lambda q, k, v, added: read_attention(visible, added, q, k, v)


def embed(
    params: Params,
    config: DecoderConfig,
    ids: jax.Array | None,
    inputs_embeds: jax.Array | None,
    positions: jax.Array,
    dtype: Any,
) -> jax.Array:
    """The residual stream before the first layer, [B, T, D].

    In `dtype`, except that float16 keeps it in float32: some models' massive activations overflow.
    Ids past the vocabulary and positions past a learned table are an error, or NaN where their
    values aren't known (see `lookup.rows`).

    Args:
        params: parameters, see `init_params`.
        config: sizes and family of the decoder.
        ids: [B, T] int; None with `inputs_embeds`.
        inputs_embeds: [B, T, D] in place of embeddings of ids.
        positions: [B, T] int.
        dtype: of the computation.

    Returns:
        [B, T, D].
    """
    x = inputs_embeds if ids is None else rows(params["embed"]["tokens"], ids, "ids")
    assert x is not None
    x = x.astype(jnp.float32 if dtype == jnp.float16 else dtype)
    if config.positions == "learned":
        x = x + rows(params["embed"]["positions"], positions, "positions").astype(x.dtype)
    return x


def logits_of(params: Params, config: DecoderConfig, residual: jax.Array, dtype: Any) -> jax.Array:
    """Final norm and head: [B, N, D] -> float32 [B, N, V].

    Args:
        params: parameters, see `init_params`.
        config: sizes and family of the decoder.
        residual: [B, N, D], behind the last layer.
        dtype: of the computation.

    Returns:
        [B, N, V] float32.
    """
    x = normalize(config, params["final_norm"], residual, dtype)
    kernel = params["embed"]["tokens"].T if config.tied else params["head"]["kernel"]
    logits = rows_product(x, kernel.astype(dtype), jnp.float32)
    return logits + params["head"]["bias"].astype(jnp.float32) if config.head_bias else logits


def at(x: jax.Array, positions: jax.Array | None) -> jax.Array:
    """x [B, T, ...] at positions [B, N] of its second axis: [B, N, ...]; all of it for None.

    JAX takes the last place for one past the end. Here known ones are an error, and in a
    transformation, where they aren't known, what is there is NaN.

    Args:
        x: [B, T, ...].
        positions: [B, N] int; negative ones count from the end; None: all.

    Returns:
        [B, N, ...], or x.

    Raises:
        ValueError: known positions that aren't there.
    """
    if positions is None:
        return x
    if not isinstance(positions, Tracer):
        known, length = np.asarray(positions), x.shape[1]
        wrong = known[(known < -length) | (known >= length)]
        if wrong.size:
            raise ValueError(f"positions: expected at most {length - 1}, got {wrong.flat[0]}")
    return jax.vmap(lambda row, where: row.at[where].get(mode="fill"))(x, positions)


def norms_of(head_outputs: jax.Array) -> jax.Array:
    """Euclidean norms over the last axis, float32.

    Args:
        head_outputs: [..., d].

    Returns:
        [...] float32.
    """
    return jnp.linalg.norm(head_outputs.astype(jnp.float32), axis=-1)


def init_params(key: jax.Array, config: DecoderConfig, dtype: Any = jnp.float32) -> Params:
    """Random parameters: kernels and embeddings from N(0, 0.02^2), scales 1, biases 0.

    Args:
        key: typed random key [].
        config: sizes and family of the decoder.
        dtype: of the parameters.

    Returns:
        A nested dict with stacked layers [L, ...].
    """
    width, heads = config.width, config.heads * config.head_dim
    kv = config.kv_heads * config.head_dim
    keys = iter(jax.random.split(key, 16))

    def normal(*shape: int) -> jax.Array:
        return 0.02 * jax.random.normal(next(keys), shape, dtype)

    def dense(inputs: int, outputs: int, bias: bool, stack: tuple = (config.layers,)) -> Params:
        kernel = {"kernel": normal(*stack, inputs, outputs)}
        return kernel | ({"bias": jnp.zeros((*stack, outputs), dtype)} if bias else {})

    def norm(*shape: int, kind: str = config.norm) -> Params:
        bias = {"bias": jnp.zeros(shape, dtype)} if kind == "layer" else {}
        return {"scale": jnp.ones(shape, dtype)} | bias

    attention = {
        "query": dense(width, heads, config.qkv_bias),
        "key": dense(width, kv, config.qkv_bias),
        "value": dense(width, kv, config.qkv_bias),
        "out": dense(heads, width, config.out_bias),
    }
    if config.qk_norm:
        for name in ("query_norm", "key_norm"):
            attention[name] = norm(config.layers, config.head_dim, kind="rms")
    mlp = {
        "up": dense(width, config.mlp_width, config.mlp_bias),
        "down": dense(config.mlp_width, width, config.mlp_bias),
    }
    if config.gated:
        mlp["gate"] = dense(width, config.mlp_width, config.mlp_bias)
    layers = {"attention": attention, "mlp": mlp, "attention_norm": norm(config.layers, width)}
    if config.residual != "parallel_one_norm":
        layers["mlp_norm"] = norm(config.layers, width)
    embedding = {"tokens": normal(config.vocab_size, width)}
    if config.positions == "learned":
        embedding["positions"] = normal(config.max_positions, width)
    params = {"embed": embedding, "layers": layers, "final_norm": norm(width)}
    if not config.tied:
        params["head"] = dense(width, config.vocab_size, config.head_bias, stack=())
    elif config.head_bias:
        params["head"] = {"bias": jnp.zeros(config.vocab_size, dtype)}
    return params


def unstack_layers(params: Params) -> Params:
    """The same parameters with a tuple of layers, which every function here takes as well.

    Args:
        params: with stacked layers.

    Returns:
        The parameters, with `layers` a tuple of L trees.
    """
    layers = params["layers"]
    number = jax.tree.leaves(layers)[0].shape[0]
    unstacked = [jax.tree.map(lambda leaf, i=i: leaf[i], layers) for i in range(number)]
    return params | {"layers": tuple(unstacked)}


def _tokens(ids: jax.Array | None, inputs_embeds: jax.Array | None) -> jax.Array:
    given = [tokens for tokens in (ids, inputs_embeds) if tokens is not None]
    if len(given) != 1:
        raise ValueError(f"expected either ids or inputs_embeds, got {len(given)} of them")
    return given[0]


def _tap(name: str, x: jax.Array, inside: Inside) -> jax.Array:
    if name == "head_norms":
        return norms_of(inside.head_outputs)
    return {
        "hidden": x,
        "head_outputs": inside.head_outputs,
        "mlp_outputs": inside.mlp_output,
        "attention": inside.attention,
    }[name]
