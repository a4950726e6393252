r"""Temporal U-Net: the noise in a sequence of vectors, given diffusion step and condition.

    eps = apply(params, config, x, step, condition, keep)      x [B, T, C] -> eps [B, T, C]

Residual blocks of two convolutions over time (kernel 5, GroupNorm, Mish) with the condition added
between them, on L levels of T, T/2, ... positions; skips are taken before down-sampling, that of
the first level is never used, as in the published network. Sequences are channels last.

Janner et al. 2022 (arXiv 2205.09991) and Ajay et al. 2023 (Decision Diffuser); the variant is that
of CoD (arXiv 2409.02512), which VQ-CD keeps. Parameters are nested dictionaries with its names;
kernels are [taps, in, out], dense weights [in, out], and an up-sampling kernel is that of the
convolution over the input with zeros between its positions.

**Live taps.** Where T is short, outer taps of a kernel only ever meet padding. They are not
computed; with `compact` they are not stored either. At T = 8 and three levels a third of the
weights are dead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import reduce
from itertools import pairwise
from operator import getitem
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxmethods.models.temporal_convolution import Convolution, convolve
from jaxmethods.models.temporal_unet_config import TemporalNetworkConfig
from jaxmethods.numerics.keys import each_named

Params: TypeAlias = Any
EPSILON = 1e-5
"""Added to a group's variance."""


# How a level's convolutions look.
def _block(config: TemporalNetworkConfig, length: int) -> Convolution:
    return Convolution(config.kernel, length)


def _down(length: int) -> Convolution:
    return Convolution(3, length, stride=2)


def _up(length: int) -> Convolution:
    return Convolution(4, length, up=2)


def _point(length: int) -> Convolution:
    return Convolution(1, length)


def init(key: jax.Array, config: TemporalNetworkConfig) -> Params:
    """Draws parameters as PyTorch does: U(-1/sqrt(fan_in), 1/sqrt(fan_in)), norms 1 and 0.

    Args:
        key: [] typed key; every leaf's own key is made from its name.
        config: sizes; static.

    Returns:
        Nested dictionaries of float32 arrays. With `compact` the kernels are the live taps of those
        that are drawn without.
    """
    layers = unet_layers(config) if config.kind == "unet" else mlp_layers(config)
    alike: dict[_Layer, list[str]] = {}
    params: dict[str, Any] = {}
    for name, layer in layers:
        alike.setdefault(layer, []).append(name)
        node = params
        for part in name.split("."):
            node = node.setdefault(part, {})
    # Layers of one shape are drawn by one operation: half of what there is to compile.
    for layer, names in alike.items():
        drawn = jax.vmap(lambda key, layer=layer: layer.init(key, config.compact))(
            each_named(key, names)
        )
        for place, name in enumerate(names):
            reduce(getitem, name.split("."), params).update(
                {leaf: values[place] for leaf, values in drawn.items()}
            )
    return params


class _Layer(NamedTuple):
    """A dense layer, a convolution (`conv`) or a norm (`inputs` is 0)."""

    inputs: int
    outputs: int
    conv: Convolution | None = None

    def init(self, key: jax.Array, compact: bool) -> dict[str, jax.Array]:
        if not self.inputs:
            return {"weight": jnp.ones(self.outputs), "bias": jnp.zeros(self.outputs)}
        weight_key, bias_key = jax.random.split(key)
        shape, fan_in = (self.inputs, self.outputs), self.inputs
        if self.conv is not None:
            shape = (self.conv.taps, *shape)
            # PyTorch takes the outputs of a transposed convolution for its inputs.
            fan_in = self.conv.taps * (self.inputs if self.conv.up == 1 else self.outputs)
        bound = 1.0 / math.sqrt(fan_in)
        weight = jax.random.uniform(weight_key, shape, minval=-bound, maxval=bound)
        if self.conv is not None and compact:
            weight = weight[slice(*self.conv.live)]
        bias = jax.random.uniform(bias_key, (self.outputs,), minval=-bound, maxval=bound)
        return {"weight": weight, "bias": bias}


def _embedding_layers(dim: int) -> Iterator[tuple[str, _Layer]]:
    yield "time_embed.dense0", _Layer(dim, 4 * dim)
    yield "time_embed.dense1", _Layer(4 * dim, dim)
    yield "return_embed.dense0", _Layer(1, dim)
    yield "return_embed.dense1", _Layer(dim, 4 * dim)
    yield "return_embed.dense2", _Layer(4 * dim, dim)


def mlp_layers(config: TemporalNetworkConfig) -> Iterator[tuple[str, _Layer]]:
    """Names and sizes of the perceptron's layers."""
    yield from _embedding_layers(config.dim)
    flat = config.horizon * config.channels
    sizes = [flat + 2 * config.dim, *[config.hidden] * config.layers, flat]
    for place, (inputs, outputs) in enumerate(pairwise(sizes)):
        yield f"mlp.dense{place}", _Layer(inputs, outputs)


def unet_layers(config: TemporalNetworkConfig) -> Iterator[tuple[str, _Layer]]:
    """Names and sizes of the U-Net's layers."""
    yield from _embedding_layers(config.dim)
    widths, lengths = config.widths, config.lengths
    last = len(widths) - 1

    def conv_block(name: str, inputs: int, outputs: int, length: int) -> Iterator:
        yield f"{name}.conv", _Layer(inputs, outputs, _block(config, length))
        yield f"{name}.gn", _Layer(0, outputs)

    def residual(name: str, inputs: int, outputs: int, length: int) -> Iterator:
        yield from conv_block(f"{name}.block0", inputs, outputs, length)
        yield from conv_block(f"{name}.block1", outputs, outputs, length)
        yield f"{name}.cond_proj", _Layer(2 * config.dim, outputs)
        if inputs != outputs:
            yield f"{name}.skip", _Layer(inputs, outputs, _point(length))

    before = config.channels
    for level, (width, length) in enumerate(zip(widths, lengths, strict=True)):
        yield from residual(f"down{level}.res0", before, width, length)
        yield from residual(f"down{level}.res1", width, width, length)
        if level < last:
            yield f"down{level}.downsample", _Layer(width, width, _down(length))
        before = width
    for place in range(2):
        yield from residual(f"mid.res{place}", widths[-1], widths[-1], lengths[-1])
    for up, level in enumerate(range(last, 0, -1)):
        inputs, outputs, length = 2 * widths[level], widths[level - 1], lengths[level]
        yield from residual(f"up{up}.res0", inputs, outputs, length)
        yield from residual(f"up{up}.res1", outputs, outputs, length)
        yield f"up{up}.upsample", _Layer(outputs, outputs, _up(length))
    yield from conv_block("final.block", widths[0], config.dim, config.horizon)
    yield "final.out", _Layer(config.dim, config.channels, _point(config.horizon))


def compacted(params: Params, config: TemporalNetworkConfig) -> Params:
    """Parameters reduced to their live taps, where they have others."""
    layers = dict(unet_layers(config)) if config.kind == "unet" else {}

    def reduce(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path[:-1], simple=True, separator=".")
        conv = layers[name].conv if name in layers else None
        if conv is None or leaf.ndim != 3 or leaf.shape[0] != conv.taps:
            return leaf
        return leaf[slice(*conv.live)]

    return jax.tree_util.tree_map_with_path(reduce, params)


def apply(
    params: Params,
    config: TemporalNetworkConfig,
    x: jax.Array,
    step: jax.Array,
    condition: jax.Array,
    keep: jax.Array,
) -> jax.Array:
    """Predicts the noise of `x`.

    Args:
        params: those of `init`, or of a published checkpoint; full or compact kernels.
        config: sizes; static.
        x: [B, T, C].
        step: [B] diffusion steps.
        condition: [B, 1] the return, or the number of a task.
        keep: [B, 1] factor of the condition's embedding; 0 is the null condition.

    Returns:
        [B, T, C] float32.

    Raises:
        ValueError: T or C are not those of the config.
    """
    if x.ndim != 3 or x.shape[1:] != (config.horizon, config.channels):
        raise ValueError(
            f"x: expected [B, {config.horizon}, {config.channels}] (horizon, channels), "
            f"got {list(x.shape)}"
        )
    embedded = embed(params, config, step, condition, keep)
    if config.kind == "mlp":
        return _apply_mlp(params, config, x, embedded)
    return _apply_unet(params, config, x, mish(embedded))


def embed(
    params: Params,
    config: TemporalNetworkConfig,
    step: jax.Array,
    condition: jax.Array,
    keep: jax.Array,
) -> jax.Array:
    """Embeddings of diffusion step and condition, side by side.

    Args:
        params: the network's.
        config: sizes; static.
        step: [B] int32.
        condition: [B, 1] the return, or the number of a task.
        keep: [B, 1] factor of the condition's embedding; 0 is the null condition.

    Returns:
        [B, 2 dim].
    """
    time, value = params["time_embed"], params["return_embed"]
    seen = position_embedding(step, config.dim).astype(time["dense0"]["bias"].dtype)
    seen = dense(time["dense1"], mish(dense(time["dense0"], seen)))
    asked = mish(dense(value["dense0"], condition))
    asked = dense(value["dense2"], mish(dense(value["dense1"], asked)))
    return jnp.concatenate([seen, keep * asked], axis=-1)


def position_embedding(step: jax.Array, dim: int) -> jax.Array:
    """Sinusoids [..., dim] of integers [...]: h = ceil(dim/2) sines, the rest cosines.

    Frequencies are exp(-ln(10000) j / h): divided by h, not by h - 1 as elsewhere.
    """
    half = (dim + 1) // 2
    frequencies = jnp.exp(jnp.arange(half) * (-math.log(10000.0) / half))
    angles = step[..., None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)[..., : dim - half]], axis=-1)


def mish(x: jax.Array) -> jax.Array:
    """x tanh(log(1 + e^x)) = x n / (n + 2) with n = e^x (e^x + 2): one exponential."""
    # Beyond 20 the quotient is 1 in either precision, and its square would overflow.
    power = jnp.exp(jnp.minimum(x, 20.0))
    product = power * (power + 2.0)
    return x * (product / (product + 2.0))


def dense(layer: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    """x @ weight + bias, weight [in, out]."""
    return x @ layer["weight"] + layer["bias"]


def group_norm(layer: Mapping[str, jax.Array], x: jax.Array, groups: int) -> jax.Array:
    """Normalizes x [B, T, C] over positions and the C / `groups` channels of a group."""
    batch, length, channels = x.shape
    split = x.reshape(batch, length, groups, channels // groups)  # [B, T, G, C/G]
    centered = split - split.mean((1, 3), keepdims=True)
    variance = jnp.square(centered).mean((1, 3), keepdims=True)
    normed = (centered * jax.lax.rsqrt(variance + EPSILON)).reshape(x.shape)  # [B, T, C]
    return normed * layer["weight"] + layer["bias"]


def _conv_block(params: Params, x: jax.Array, config: TemporalNetworkConfig) -> jax.Array:
    y = convolve(params["conv"], x, _block(config, x.shape[1]), config)
    return mish(group_norm(params["gn"], y, config.groups))


def residual_block(
    params: Params, x: jax.Array, activated: jax.Array, config: TemporalNetworkConfig
) -> jax.Array:
    """Two convolutions with the condition added between them, and a skip.

    Args:
        params: `block0`, `block1`, `cond_proj` and, where the width changes, `skip`.
        x: [B, T, in].
        activated: [B, 2 dim] Mish of the embedding.
        config: sizes; static.

    Returns:
        [B, T, out].
    """
    y = _conv_block(params["block0"], x, config)
    y = y + dense(params["cond_proj"], activated)[:, None]
    y = _conv_block(params["block1"], y, config)
    if "skip" in params:
        x = convolve(params["skip"], x, _point(x.shape[1]), config)
    return y + x


def _apply_unet(
    params: Params, config: TemporalNetworkConfig, x: jax.Array, activated: jax.Array
) -> jax.Array:
    levels, skips = len(config.multipliers), []

    def both(block: Params, x: jax.Array) -> jax.Array:
        x = residual_block(block["res0"], x, activated, config)
        return residual_block(block["res1"], x, activated, config)

    for level in range(levels):
        block = params[f"down{level}"]
        x = both(block, x)
        skips.append(x)
        if level < levels - 1:
            x = convolve(block["downsample"], x, _down(x.shape[1]), config)
    x = both(params["mid"], x)
    for up in range(levels - 1):
        block = params[f"up{up}"]
        x = both(block, jnp.concatenate([x, skips.pop()], axis=-1))
        x = convolve(block["upsample"], x, _up(x.shape[1]), config)
    x = _conv_block(params["final"]["block"], x, config)
    return convolve(params["final"]["out"], x, _point(x.shape[1]), config)


def _apply_mlp(
    params: Params, config: TemporalNetworkConfig, x: jax.Array, embedded: jax.Array
) -> jax.Array:
    y = jnp.concatenate([x.reshape(x.shape[0], -1), embedded], axis=-1)  # [B, T C + 2 dim]
    for place in range(config.layers):
        y = mish(_dense_as(config, params["mlp"][f"dense{place}"], y))
    return _dense_as(config, params["mlp"][f"dense{config.layers}"], y).reshape(x.shape)


def _dense_as(
    config: TemporalNetworkConfig, layer: Mapping[str, jax.Array], x: jax.Array
) -> jax.Array:
    """A dense layer whose product is computed in the config's type."""
    if config.dtype == "float32":
        return dense(layer, x)
    y = x.astype(config.dtype) @ layer["weight"].astype(config.dtype)
    return y.astype(layer["bias"].dtype) + layer["bias"]
