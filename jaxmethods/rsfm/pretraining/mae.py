r"""Masked autoencoders: a quarter of the patches is encoded, the others are painted.

    z = Encoder(kept patches),   x^ = Decoder([z; mask tokens] + positions)
    L = sum_i m_i mean_k (x^_ik - t_ik)^2 / sum_i m_i                  m_i = 1 where i is hidden

He et al. 2022, arXiv 2111.06377. The target t is a patch's pixels, or with `norm_pix` those pixels
less their mean over sqrt(variance + 1e-6), with the unbiased variance. With an encoder of several
groups of bands or dates it is SatMAE (arXiv 2207.08051): tokens are hidden independently, or at the
same places in all groups (`satmae` has its targets and loss).

    config = MAEConfig(encoder=EncoderConfig(...))
    params = mae.init(key, config)
    out = mae.forward(params, config, images, noise)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.models.clip import vit
from jaxmethods.models.clip.vit import linear
from jaxmethods.models.geovit import encoder
from jaxmethods.models.geovit.config import EncoderConfig
from jaxmethods.models.geovit.encoder import NOTHING, Context, Encoded, encode
from jaxmethods.rsfm.config import MAEConfig
from jaxmethods.rsfm.pretraining import satmae
from jaxmethods.rsfm.pretraining.masking import Masks, fill, random_masks, repeated
from jaxmethods.rsfm.pretraining.targets import masked_mean, patch_targets, without_gaps


class Painted(NamedTuple):
    """What a masked autoencoder makes of images."""

    loss: jax.Array
    """[] float32."""
    pred: jax.Array
    """[B, T, p p C] in target units; with groups of bands [B, C, L, p p], see `satmae`."""
    masks: Masks
    encoded: Encoded


def forward(
    params: Any,
    config: MAEConfig,
    images: jax.Array,
    noise: jax.Array,
    context: Context = NOTHING,
    *,
    valid: jax.Array | None = None,
    remat: bool = False,
) -> Painted:
    """Hides, encodes, paints and compares.

    Args:
        params: of `init`; their type is that of the computation, the loss is float32.
        config: static.
        images: [B, H, W, C], or [B, T, H, W, C] with frames.
        noise: [B, T] uniform, or [B, L] with `masking: shared`.
        context: what the encoder's positions need.
        valid: [B, H, W] bool; pixels that are not are left out of statistics and loss. None: all.
        remat: compute blocks again in the backward pass.

    Returns:
        Loss, painted patches, masks and what was encoded.
    """
    masks = draw(config, noise)
    images = without_gaps(images, valid)  # a token of NaN would make all of them NaN
    encoded = encode(
        params["encoder"], config.encoder, images, context, keep=masks.keep, remat=remat
    )
    tokens = decode(params["decoder"], config, encoded, masks, context, remat=remat)
    if config.encoder.groups:
        pred = satmae.paint(params["decoder"]["pred"], config, tokens)
        loss = satmae.loss(config, images, pred, masks.hidden, valid)
    else:
        pred = linear(params["decoder"]["pred"], tokens)
        loss = pixel_loss(config, images, pred, masks.hidden, valid)
    return Painted(loss, pred, masks, encoded)


def draw(config: MAEConfig, noise: jax.Array) -> Masks:
    """The masks that follow from noise [B, T], or [B, L] where groups or frames share one."""
    masks = random_masks(noise, config.mask_ratio)
    if config.masking == "independent":
        return masks
    return repeated(masks, config.encoder.tokens // config.encoder.grid**2)


def noise_shape(config: MAEConfig, batch: int) -> tuple[int, int]:
    """The shape of the noise of `forward`."""
    shared = config.masking == "shared"
    return batch, config.encoder.grid**2 if shared else config.encoder.tokens


def decode(
    params: Any,
    config: MAEConfig,
    encoded: Encoded,
    masks: Masks,
    context: Context = NOTHING,
    *,
    remat: bool = False,
) -> jax.Array:
    """Tokens of all patches after the decoder's norm.

    Args:
        params: the decoder's.
        config: static.
        encoded: of the kept patches.
        masks: which those are.
        context: what positions need.
        remat: compute blocks again in the backward pass.

    Returns:
        [B, T, D'].
    """
    narrow = linear(params["embed"], encoded.sequence)
    filled = fill(narrow[:, 1:], params["mask_token"], masks)
    x = jnp.concatenate([narrow[:, :1], filled], axis=1)
    own = decoder_config(config)
    x = x + jnp.asarray(encoder.position_table({}, own, context), x.dtype)
    last = vit.encode(params["blocks"], own, x, remat=remat).last
    return vit.layer_norm(params["norm"], last, own.layer_norm_eps)[:, 1:]


def decoder_config(config: MAEConfig) -> EncoderConfig:
    """The decoder's blocks and positions as a config; a learned table gives way to fixed sines."""
    own = config.encoder
    kind = "sincos" if own.positions in ("learned", "tubelet") else own.positions
    if own.positions == "tubelet" and own.frames > 1:
        kind = "tubelet"
    return own.model_copy(
        update={
            "width": config.decoder_width,
            "depth": config.decoder_depth,
            "heads": config.decoder_heads,
            "channel_width": config.decoder_channel_width,
            "date_width": config.decoder_date_width,
            "positions": kind,
            "registers": 0,
        }
    )


def pixel_loss(
    config: MAEConfig,
    images: jax.Array,
    pred: jax.Array,
    hidden: jax.Array,
    valid: jax.Array | None = None,
) -> jax.Array:
    """Mean squared error over hidden patches.

    Args:
        config: static.
        images: [B, H, W, C], or [B, T, H, W, C] with frames.
        pred: [B, T, p p C].
        hidden: [B, T], 1 where a patch is hidden.
        valid: [B, H, W] bool; None: all.

    Returns:
        [] float32.
    """
    target, weight = patch_targets(images, config.encoder.patch, config.norm_pix, valid)
    errors = jnp.square(pred.astype(jnp.float32).reshape(target.shape) - target)
    return masked_mean(jnp.mean(errors, axis=-1), hidden, weight)


def init(key: jax.Array, config: MAEConfig) -> Any:
    """Fresh parameters of encoder and decoder.

    Args:
        key: [] typed random key.
        config: of both.

    Returns:
        {"encoder", "decoder"}, float32.
    """
    keys = jax.random.split(key, 3)
    own, width = config.encoder, config.decoder_width
    blocks = {"depth": config.decoder_depth, "width": width, "inner": decoder_config(config).inner}
    decoder = init_decoder(keys[1], own.width, **blocks)
    size = own.patch**2
    if own.groups:
        heads = jax.random.split(keys[2], len(own.groups))
        decoder["pred"] = {
            str(place): init_dense(head, len(group) * size, width)
            for place, (head, group) in enumerate(zip(heads, own.groups, strict=True))
        }
    else:
        decoder["pred"] = init_dense(keys[2], own.channels * size, width)
    return {"encoder": encoder.init(keys[0], own), "decoder": decoder}


def init_decoder(key: jax.Array, inputs: int, depth: int, width: int, inner: int) -> Any:
    """Fresh parameters of a decoder without its head.

    Args:
        key: [] typed random key.
        inputs: D of the encoder.
        depth: number of blocks.
        width: D'.
        inner: hidden units of a block's MLP.

    Returns:
        {"embed", "mask_token", "blocks", "norm"}, float32.
    """
    keys = jax.random.split(key, 3)
    return {
        "embed": init_dense(keys[0], width, inputs),
        "mask_token": 0.02 * jax.random.normal(keys[1], (width,)),
        "blocks": encoder.init_blocks(keys[2], depth, width, inner),
        "norm": vit.init_norm(width),
    }


def init_dense(key: jax.Array, outputs: int, inputs: int) -> dict[str, jax.Array]:
    """A fresh linear map, {"weight" [outputs, inputs], "bias" [outputs]}: uniform (Xavier)."""
    weight = jax.nn.initializers.xavier_uniform()(key, (outputs, inputs))
    return {"weight": weight, "bias": jnp.zeros(outputs)}
