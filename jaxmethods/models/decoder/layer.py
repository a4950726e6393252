"""The pieces of a decoder layer, each usable alone, and the loop over layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from jaxmethods.models.decoder.config import DecoderConfig
from jaxmethods.models.decoder.rope import rotate
from jaxmethods.models.products import gelu, rows_product

Params: TypeAlias = dict[str, Any]
Angles: TypeAlias = tuple[jax.Array, jax.Array] | None
"""Cosine and sine of `rope.rotation`, or None where positions are learned."""
Attend: TypeAlias = Callable[
    [jax.Array, jax.Array, jax.Array], jax.Array | tuple[jax.Array, jax.Array]
]
"""Rotated queries [B, T, H, d], keys and values [B, T, K, d] -> head outputs [B, T, H, d], maybe
with the probabilities they were made with."""


class Inside(NamedTuple):
    """What a layer computed on the way."""

    head_outputs: jax.Array
    """[B, T, H, d], before the output projection."""
    mlp_output: jax.Array
    """[B, T, D]."""
    keys: jax.Array
    """[B, T, K, d], rotated."""
    values: jax.Array
    """[B, T, K, d]."""
    attention: jax.Array | None = None
    """[B, T, H, T] probabilities, where `attend` gives them."""


def run_layer(
    config: DecoderConfig, layer: Params, x: jax.Array, angles: Angles, attend: Attend, dtype: Any
) -> tuple[jax.Array, Inside]:
    """One layer, from residual stream to residual stream.

    Args:
        config: sizes and switches; static.
        layer: its parameters.
        x: [B, T, D].
        angles: cosine and sine of rotary positions [B, T, r / 2], or None.
        attend: attention of the queries to keys and values.
        dtype: of the computation.

    Returns:
        [B, T, D] after it, and what was computed inside.
    """
    normed = normalize(config, layer["attention_norm"], x, dtype)
    keys, values = project_keys(config, layer["attention"], normed, angles)
    queries = project_queries(config, layer["attention"], normed, angles)
    attended = attend(queries, keys, values)
    heads, probabilities = attended if isinstance(attended, tuple) else (attended, None)
    together = heads.reshape(*heads.shape[:2], config.heads * config.head_dim)  # [B, T, H d]
    change = dense(layer["attention"]["out"], together)
    if config.residual == "sequential":
        x = x + change
    if config.residual != "parallel_one_norm":
        normed = normalize(config, layer["mlp_norm"], x, dtype)
    output = mlp(config, layer["mlp"], normed)
    x = x + output if config.residual == "sequential" else x + (change + output)
    return x, Inside(heads, output, keys, values, probabilities)


def project_queries(
    config: DecoderConfig, attention: Params, normed: jax.Array, angles: Angles
) -> jax.Array:
    """Queries, rotated where positions are.

    Args:
        config: sizes and switches; static.
        attention: parameters of the attention.
        normed: [B, T, D].
        angles: cosine and sine of rotary positions [B, T, r / 2], or None.

    Returns:
        [B, T, H, d].
    """
    queries = split_heads(config, dense(attention["query"], normed))
    if config.qk_norm:
        queries = normalize(config, attention["query_norm"], queries, queries.dtype, kind="rms")
    return queries if angles is None else rotate(queries, *angles, config)


def project_keys(
    config: DecoderConfig, attention: Params, normed: jax.Array, angles: Angles
) -> tuple[jax.Array, jax.Array]:
    """Keys, rotated where positions are, and values.

    Args:
        config: sizes and switches; static.
        attention: parameters of the attention.
        normed: [B, T, D].
        angles: cosine and sine of rotary positions [B, T, r / 2], or None.

    Returns:
        Keys and values, [B, T, K, d] each.
    """
    keys = split_heads(config, dense(attention["key"], normed))
    values = split_heads(config, dense(attention["value"], normed))
    if config.qk_norm:
        keys = normalize(config, attention["key_norm"], keys, keys.dtype, kind="rms")
    return (keys if angles is None else rotate(keys, *angles, config)), values


def mlp(config: DecoderConfig, params: Params, x: jax.Array) -> jax.Array:
    """[B, T, D] -> [B, T, D]."""
    activation = {
        "silu": jax.nn.silu,
        "gelu": gelu,
        "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
        "relu": jax.nn.relu,
    }[config.activation]
    up = dense(params["up"], x)
    inner = activation(dense(params["gate"], x)) * up if config.gated else activation(up)
    return dense(params["down"], inner)


def normalize(
    config: DecoderConfig, params: Params, x: jax.Array, dtype: Any, kind: str | None = None
) -> jax.Array:
    """RMS or layer norm over the last axis: statistics in float32, scale in `dtype`.

    Args:
        config: kind of norm and its epsilon; static.
        params: "scale" and maybe "bias", [D].
        x: [..., D].
        dtype: of scale, bias and result.
        kind: "layer" or "rms"; None: the config's.

    Returns:
        [..., D] in `dtype`.
    """
    x = x.astype(jnp.float32)
    if (kind or config.norm) == "layer":
        x = x - jnp.mean(x, -1, keepdims=True)
    x = x * lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + config.norm_eps)
    x = x.astype(dtype) * params["scale"].astype(dtype)
    return x + params["bias"].astype(dtype) if "bias" in params else x


def dense(params: Params, x: jax.Array) -> jax.Array:
    """x W + b in the type of x; with adapters (`lora`), x W + (x A) B + b."""
    y = rows_product(x, params["kernel"].astype(x.dtype))
    if "lora_a" in params:
        first = rows_product(x, params["lora_a"].astype(x.dtype))
        y = y + rows_product(first, params["lora_b"].astype(x.dtype))
    return y + params["bias"].astype(x.dtype) if "bias" in params else y


def split_heads(config: DecoderConfig, x: jax.Array) -> jax.Array:
    """[B, T, H d] -> [B, T, H, d]."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // config.head_dim, config.head_dim)


def over_layers(
    body: Callable, carry: Any, layers: Any, per_layer: Any = None, first: int | None = None
) -> tuple[Any, Any]:
    """Like `lax.scan(body, carry, (layers, per_layer))`, for stacked or unstacked layers.

    Args:
        body: (carry, (layer, its `per_layer`)) -> (carry, output).
        carry: what goes from layer to layer.
        layers: leaves with a leading layer axis, or a tuple of layers (then the loop is unrolled).
        per_layer: further inputs, with a leading layer axis.
        first: the number of layers to run. The stack is indexed, not cut: cutting would copy it.
            Not meant to be differentiated.

    Returns:
        The last carry, and the outputs with a leading layer axis; None where no unstacked layer
        ran.
    """
    if first is None and not isinstance(layers, tuple):
        return lax.scan(body, carry, (layers, per_layer))

    def indexed(carry: Any, number: Any) -> tuple[Any, Any]:
        return body(carry, (layer_of(layers, number), _index(per_layer, number)))

    if not isinstance(layers, tuple):
        return lax.scan(indexed, carry, jnp.arange(first))
    outputs = []
    for number in range(len(layers) if first is None else first):
        carry, output = indexed(carry, number)
        outputs.append(output)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs) if outputs else None


def layer_of(layers: Any, number: Any) -> Params:
    """One layer of stacked or unstacked layers."""
    return layers[number] if isinstance(layers, tuple) else _index(layers, number)


def _index(tree: Any, number: Any) -> Any:
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, number, keepdims=False), tree)
