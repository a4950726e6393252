r"""Scale-MAE: positions in meters, and an image painted in two bands of frequency.

    low  = area(y, H),        high = y - bilinear(area(y, b))                    y: the image at 2H
    L = sum m |high^ - high| / sum m  +  sum m (low^ - low)^2 / sum m

Reed et al. 2023, arXiv 2212.14532, sections 3.1 to 3.3. Sums run over hidden pixels and their three
channels, counts over pixels, as in the published code: three times a mean. The decoder paints
twice: from a pyramid of four and of two times the grid of patches, each through a head of small
convolutions that enlarges it eight times. Transposed convolutions of stride k and width k are
products of matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.models.clip import vit
from jaxmethods.models.clip.vit import layer_norm, linear
from jaxmethods.models.geovit import encoder
from jaxmethods.models.geovit.config import EncoderConfig
from jaxmethods.models.geovit.encoder import Context, Encoded, encode
from jaxmethods.models.geovit.resize import resize
from jaxmethods.models.products import gelu
from jaxmethods.rsfm.config import ScaleMAEConfig
from jaxmethods.rsfm.pretraining.mae import init_decoder
from jaxmethods.rsfm.pretraining.masking import Masks, fill, random_masks
from jaxmethods.rsfm.pretraining.targets import without_gaps

EPSILON = 1e-6
CHANNELS = 3


class Pyramid(NamedTuple):
    """High and low frequencies."""

    high: jax.Array
    """[B, 2H, 2H, 3]"""
    low: jax.Array
    """[B, H, H, 3]"""


class Painted(NamedTuple):
    """What Scale-MAE makes of images."""

    loss: jax.Array
    """[] float32."""
    pred: Pyramid
    masks: Masks
    encoded: Encoded


def forward(
    params: Any,
    config: ScaleMAEConfig,
    images: jax.Array,
    targets: jax.Array,
    noise: jax.Array,
    gsd: jax.Array,
    valid: jax.Array | None = None,
) -> Painted:
    """Hides, encodes, paints and compares.

    Args:
        params: of `init`.
        config: static.
        images: [B, H, H, 3].
        targets: [B, 2H, 2H, 3], the same ground at twice the resolution.
        noise: [B, L] uniform.
        gsd: [B] meters of a pixel of the images.
        valid: [B, 2H, 2H] bool; pixels that are not are left out of the loss. None: all.

    Returns:
        Loss, painted frequencies, masks and what was encoded.
    """
    masks = random_masks(noise, config.mask_ratio)
    context = Context(gsd=gsd)
    encoded = encode(params["encoder"], config.encoder, images, context, keep=masks.keep)
    pred = decode(params["decoder"], config, encoded, masks, gsd)
    own = loss(config, pred, targets, masks.hidden, valid)
    return Painted(own, pred, masks, encoded)


def decode(
    params: Any, config: ScaleMAEConfig, encoded: Encoded, masks: Masks, gsd: jax.Array
) -> Pyramid:
    """Paints both bands of frequency.

    Args:
        params: the decoder's.
        config: static.
        encoded: of the kept patches.
        masks: which those are.
        gsd: [B] meters of a pixel of the encoder's images.

    Returns:
        High and low frequencies.
    """
    own = decoder_config(config)
    x = fill(linear(params["embed"], encoded.patches), params["mask_token"], masks)
    x = x + encoder.position_table({}, own, Context(gsd=gsd))[:, 1:].astype(x.dtype)
    x = layer_norm(params["norm"], vit.encode(params["blocks"], own, x).last, own.layer_norm_eps)
    grid = x.reshape(len(x), own.grid, own.grid, -1)  # [B, g, g, D']
    pyramid = params["fpn"]
    fine = gelu(layer_norm(pyramid["norm"], enlarge(pyramid["first"], grid), EPSILON))
    fine, coarse = enlarge(pyramid["second"], fine), enlarge(pyramid["only"], grid)
    return Pyramid(_head(params["high"], fine), _head(params["low"], coarse))


def loss(
    config: ScaleMAEConfig,
    pred: Pyramid,
    targets: jax.Array,
    hidden: jax.Array,
    valid: jax.Array | None = None,
) -> jax.Array:
    """The loss over hidden pixels of both bands.

    Args:
        config: static.
        pred: painted frequencies.
        targets: [B, 2H, 2H, 3].
        hidden: [B, L], 1 where a patch is hidden.
        valid: [B, 2H, 2H] bool; None: all pixels have data. Others are in no sum, nor is what is
            blurred of them at H.

    Returns:
        [] float32.
    """
    targets = without_gaps(targets.astype(jnp.float32), valid)
    high, low = frequencies(config, targets)
    mask = hidden.reshape(len(hidden), config.encoder.grid, config.encoder.grid, 1)
    fine = resize(mask, (high.shape[1], high.shape[2]), "nearest")
    coarse = resize(mask, (low.shape[1], low.shape[2]), "nearest")
    if valid is not None:
        there = valid[..., None].astype(fine.dtype)
        fine = fine * there
        coarse = coarse * (resize(there, (low.shape[1], low.shape[2]), "area") > 1 - 1e-6)
    of_low = jnp.sum(coarse * jnp.square(low - pred.low)) / (jnp.sum(coarse) + 1e-9)
    difference = high - pred.high
    error = jnp.abs(difference) if config.high_loss == "l1" else jnp.square(difference)
    return jnp.sum(fine * error) / (jnp.sum(fine) + 1e-9) + of_low


def frequencies(config: ScaleMAEConfig, targets: jax.Array) -> Pyramid:
    """Splits images [B, 2H, 2H, 3] into what is painted at 2H and at H."""
    size, (below, above) = config.encoder.image_size, config.bands
    low = resize(targets, (above, above), "area") if above == 224 else targets
    blurred = resize(targets, (below, below), "area")
    blurred = resize(blurred, (targets.shape[1], targets.shape[2]), "bilinear")
    return Pyramid(targets - blurred, resize(low, (size, size), "area"))


def decoder_config(config: ScaleMAEConfig) -> EncoderConfig:
    """The decoder's blocks and positions as a config."""
    sizes = {"width": config.decoder_width, "depth": config.decoder_depth}
    return config.encoder.model_copy(update=sizes | {"heads": config.decoder_heads})


def enlarge(params: Any, x: jax.Array) -> jax.Array:
    """A transposed convolution whose stride is its width.

    Args:
        params: {"weight" [C, O, k, k], "bias" [O]}.
        x: [B, H, W, C].

    Returns:
        [B, k H, k W, O].
    """
    _, outputs, factor, _ = params["weight"].shape
    spread = jnp.einsum("bhwc,coij->bhiwjo", x, params["weight"])
    batch, height, width, _ = x.shape
    return spread.reshape(batch, height * factor, width * factor, outputs) + params["bias"]


def convolve(params: Any, x: jax.Array) -> jax.Array:
    """A 3 x 3 convolution in groups, zeros around the image, as nine shifted products.

    Args:
        params: {"weight" [O, C / G, 3, 3], "bias" [O]}.
        x: [B, H, W, C].

    Returns:
        [B, H, W, O].
    """
    weight = params["weight"]
    outputs, inside = weight.shape[:2]
    batch, height, width, channels = x.shape
    groups = channels // inside
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    split = weight.reshape(groups, outputs // groups, inside, 3, 3)
    total = jnp.zeros((batch, height, width, groups, outputs // groups), x.dtype)
    for row in range(3):
        for column in range(3):
            shifted = padded[:, row : row + height, column : column + width]
            own = shifted.reshape(batch, height, width, groups, inside)
            total = total + jnp.einsum("bhwgi,goi->bhwgo", own, split[..., row, column])
    return total.reshape(batch, height, width, outputs) + params["bias"]


def init(key: jax.Array, config: ScaleMAEConfig) -> Any:
    """Fresh parameters of encoder and decoder.

    Args:
        key: [] typed random key.
        config: of both.

    Returns:
        {"encoder", "decoder"}, float32; convolutions as PyTorch draws them.
    """
    keys = jax.random.split(key, 8)
    width, own = config.decoder_width, decoder_config(config)
    decoder = init_decoder(keys[1], config.encoder.width, own.depth, width, own.inner)
    decoder["fpn"] = {
        "first": _convolution(keys[2], (width, width, 2, 2), width, 4 * width),
        "norm": vit.init_norm(width),
        "second": _convolution(keys[3], (width, width, 2, 2), width, 4 * width),
        "only": _convolution(keys[4], (width, width, 2, 2), width, 4 * width),
    }
    decoder["high"] = _init_head(keys[5], config)
    decoder["low"] = _init_head(keys[6], config)
    return {"encoder": encoder.init(keys[0], config.encoder), "decoder": decoder}


def _head(params: Any, x: jax.Array) -> jax.Array:
    """Channels to pixels, eight times as large."""
    x = _pointwise(params["proj"], x)
    for block in params["blocks"]:
        inner = gelu(convolve(block["depthwise"], gelu(x)))
        x = _pointwise(block["pointwise"], inner) + _pointwise(block["residual"], x)
    x = gelu(enlarge(params["enlarge"], layer_norm(params["norm"], x, EPSILON)))
    x = gelu(_pointwise(params["pointwise"], gelu(convolve(params["grouped"], x))))
    return enlarge(params["pixels"], x)


def _pointwise(params: Any, x: jax.Array) -> jax.Array:
    weight = params["weight"]
    return linear({"weight": weight.reshape(weight.shape[:2]), "bias": params["bias"]}, x)


def _init_head(key: jax.Array, config: ScaleMAEConfig) -> Any:
    keys = iter(jax.random.split(key, 5 + 3 * config.fcn_layers))
    wide, inputs = config.fcn_width, config.decoder_width
    half, quarter = wide // 2, wide // 4

    def block() -> Any:
        return {
            "depthwise": _convolution(next(keys), (half, 2, 3, 3), half, 18),
            "pointwise": _convolution(next(keys), (wide, half, 1, 1), wide, half),
            "residual": _convolution(next(keys), (wide, wide, 1, 1), wide, wide),
        }

    return {
        "proj": _convolution(next(keys), (wide, inputs, 1, 1), wide, inputs),
        "blocks": [block() for _ in range(config.fcn_layers)],
        "norm": vit.init_norm(wide),
        "enlarge": _convolution(next(keys), (wide, half, 4, 4), half, 16 * half),
        "grouped": _convolution(next(keys), (quarter, 2, 3, 3), quarter, 18),
        "pointwise": _convolution(next(keys), (half, quarter, 1, 1), half, quarter),
        "pixels": _convolution(next(keys), (half, CHANNELS, 2, 2), CHANNELS, 4 * CHANNELS),
    }


def _convolution(key: jax.Array, shape: Sequence[int], outputs: int, fan_in: int) -> Any:
    keys, bound = jax.random.split(key), fan_in**-0.5
    return {
        "weight": jax.random.uniform(keys[0], tuple(shape), minval=-bound, maxval=bound),
        "bias": jax.random.uniform(keys[1], (outputs,), minval=-bound, maxval=bound),
    }
