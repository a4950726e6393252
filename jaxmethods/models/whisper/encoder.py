"""Whisper's encoder: two convolutions, positions, pre-norm blocks without any mask.

    x = gelu(conv2(gelu(conv1 f))) + P,  x += Attn(LN x),  x += W_2 gelu(W_1 LN x),  LN x

with f the log-mel features, conv2 of stride 2, queries, values and outputs with biases, keys
without. Padding up to 30 s is attended like silence, as in training. Parameters:

    conv1/{kernel [3, M, C], bias}  conv2/{kernel [3, C, C], bias}  positions [P, C]
    layers/attention/{query, key, value, out}/{kernel [L, C, C], bias [L, C]}
    layers/mlp/{up, down}  layers/{attention_norm, mlp_norm}/{scale, bias}  final_norm/{scale, bias}
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.models.attention import scaled_attention
from jaxmethods.models.decoder.layer import Params, dense, over_layers
from jaxmethods.models.norms import layer_norm
from jaxmethods.models.products import gelu, keep_products, rows_product
from jaxmethods.models.whisper.config import EncoderConfig

TAPS = 3
"""Positions that a convolution sees."""


class Encoded(NamedTuple):
    """What the encoder was asked for."""

    last: jax.Array
    """[B, T, C], after the last norm."""
    hidden: Any = None
    """[L + 1, B, T, C]: the sum of convolutions and positions, then the stream after each block."""


def encode(
    params: Params,
    config: EncoderConfig,
    features: jax.Array,
    *,
    dtype: Any = None,
    hidden: bool = False,
) -> Encoded:
    """Runs the encoder.

    Args:
        params: of the encoder.
        config: its sizes; static.
        features: [B, M, F] log-mel, F at most twice the positions. Fewer frames are an
            approximation that costs less: Whisper was trained with its whole window.
        dtype: of the computation; None: of the parameters.
        hidden: whether the stream after every block is wanted.

    Returns:
        [B, T, C], T the half of F, rounded up; see `Encoded`.

    Raises:
        ValueError: another number of mel bins, or more frames than positions.
    """
    if features.ndim != 3 or features.shape[1] != config.n_mels:
        raise ValueError(
            f"features: expected [B, {config.n_mels}, frames], got {list(features.shape)}"
        )
    dtype = jnp.dtype(dtype or params["conv1"]["kernel"].dtype)
    x = jnp.swapaxes(features, 1, 2).astype(dtype)  # [B, F, M]
    x = gelu(convolve(params["conv1"], x, 1))
    x = gelu(convolve(params["conv2"], x, 2))  # [B, T, C]
    if x.shape[1] > config.positions:
        raise ValueError(
            f"features: expected at most {2 * config.positions} frames, got {features.shape[2]}"
        )
    x = x + params["positions"][: x.shape[1]].astype(dtype)

    def body(x: jax.Array, inputs: tuple[Params, Any]) -> tuple[jax.Array, Any]:
        layer, _ = inputs
        normed = layer_norm(layer["attention_norm"], x, config.norm_eps)
        x = x + attend(layer["attention"], normed, normed, config.heads)
        x = x + mlp(layer["mlp"], layer_norm(layer["mlp_norm"], x, config.norm_eps))
        return x, x if hidden else None

    last, streams = over_layers(keep_products(body), x, params["layers"])
    found = layer_norm(params["final_norm"], last, config.norm_eps)
    return Encoded(found, jnp.concatenate([x[None], streams]) if hidden else None)


def convolve(params: Params, x: jax.Array, stride: int) -> jax.Array:
    """A convolution of three taps, padded by one: [B, T, in] -> [B, (T - 1) // stride + 1, out].

    As one product of matrices: XLA's convolution is many times slower on CPU.
    """
    length = (x.shape[1] - 1) // stride + 1
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
    last = stride * (length - 1) + 1
    seen = [padded[:, tap : tap + last : stride] for tap in range(TAPS)]
    patches = jnp.concatenate(seen, axis=-1)  # [B, T', 3 in]
    kernel = params["kernel"].reshape(-1, params["kernel"].shape[-1])  # [3 in, out]
    return rows_product(patches, kernel.astype(x.dtype)) + params["bias"].astype(x.dtype)


def attend(params: Params, queries: jax.Array, keys: jax.Array, heads: int) -> jax.Array:
    """Attention without a mask and its output map.

    Args:
        params: query, key, value, out.
        queries: [B, T, C], normed.
        keys: [B, S, C], what is attended to.
        heads: H; static.

    Returns:
        [B, T, C].
    """
    q = split(dense(params["query"], queries), heads)
    k, v = (split(dense(params[name], keys), heads) for name in ("key", "value"))
    return dense(params["out"], joined(scaled_attention(q, k, v)))


def mlp(params: Params, x: jax.Array) -> jax.Array:
    """W_2 gelu(W_1 x), [B, T, C] -> [B, T, C]."""
    return dense(params["down"], gelu(dense(params["up"], x)))


def split(x: jax.Array, heads: int) -> jax.Array:
    """[B, T, C] -> [B, T, H, C / H]."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def joined(x: jax.Array) -> jax.Array:
    """[B, T, H, d] -> [B, T, H d]."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def sinusoids(positions: int, width: int) -> np.ndarray:
    """The fixed table of positions, [P, C] float32: sines, then cosines.

    Args:
        positions: P.
        width: C, even.

    Returns:
        sin and cos of t exp(-i ln(10000) / (C / 2 - 1)), i = 0 .. C / 2 - 1.
    """
    scales = np.exp(-math.log(10_000) / (width // 2 - 1) * np.arange(width // 2))
    angles = np.arange(positions)[:, None] * scales  # [P, C / 2]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def init_encoder(key: jax.Array, config: EncoderConfig, dtype: Any = jnp.float32) -> Params:
    """Random parameters: kernels from N(0, 0.02^2), sinusoids as positions.

    Args:
        key: typed random key [].
        config: sizes; static.
        dtype: of the parameters.

    Returns:
        A nested dict with stacked layers.
    """
    first, second, blocks = jax.random.split(key, 3)
    return {
        "conv1": _convolution(first, config.n_mels, config.width, dtype),
        "conv2": _convolution(second, config.width, config.width, dtype),
        "positions": jnp.asarray(sinusoids(config.positions, config.width), dtype),
        "layers": init_blocks(
            blocks, config.layers, config.width, config.mlp_width, ("attention",), dtype
        ),
        "final_norm": init_norm((config.width,), dtype),
    }


def init_blocks(
    key: jax.Array,
    layers: int,
    width: int,
    inner: int,
    attentions: tuple[str, ...],
    dtype: Any,
) -> Params:
    """Stacked blocks with the named attentions, each behind a norm, and an MLP.

    Args:
        key: typed random key [].
        layers: L.
        width: C.
        inner: width of the MLP.
        attentions: names.
        dtype: of the parameters.

    Returns:
        Leaves [L, ...].
    """
    keys = iter(jax.random.split(key, 4 * len(attentions) + 2))

    def linear(inputs: int, outputs: int, bias: bool = True) -> Params:
        kernel = {"kernel": 0.02 * jax.random.normal(next(keys), (layers, inputs, outputs), dtype)}
        return kernel | ({"bias": jnp.zeros((layers, outputs), dtype)} if bias else {})

    found: Params = {}
    for name in attentions:
        parts = ("query", "key", "value", "out")
        found[name] = {part: linear(width, width, part != "key") for part in parts}
        found[f"{name}_norm"] = init_norm((layers, width), dtype)
    found["mlp"] = {"up": linear(width, inner), "down": linear(inner, width)}
    found["mlp_norm"] = init_norm((layers, width), dtype)
    return found


def init_norm(shape: tuple[int, ...], dtype: Any) -> Params:
    """Scale 1 and bias 0."""
    return {"scale": jnp.ones(shape, dtype), "bias": jnp.zeros(shape, dtype)}


def _convolution(key: jax.Array, inputs: int, outputs: int, dtype: Any) -> Params:
    kernel = (TAPS * inputs) ** -0.5 * jax.random.normal(key, (TAPS, inputs, outputs), dtype)
    return {"kernel": kernel, "bias": jnp.zeros(outputs, dtype)}
