"""What masked autoencoders are compared with: pixels of patches, and the mean over hidden ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmethods.models.geovit.patches import patchify

EPSILON = 1e-6


def normalized(target: jax.Array, weight: jax.Array | None, how: str) -> jax.Array:
    """Pixels of patches less their mean, over their deviation (unbiased).

    Args:
        target: [B, T, p p, C].
        weight: [B, T, p p], 1 where a pixel is valid; None: all are.
        how: "joint": over all bands of a patch; "per_band"; "none"; static.

    Returns:
        [B, T, p p, C]; a constant patch becomes zeros.
    """
    if how == "none":
        return target
    axes = (-2, -1) if how == "joint" else (-2,)
    over = jnp.ones((), target.dtype) if weight is None else weight[..., None]
    over = jnp.broadcast_to(over, target.shape)
    count = jnp.sum(over, axis=axes, keepdims=True)
    mean = jnp.sum(over * target, axis=axes, keepdims=True) / jnp.maximum(count, 1)
    centered = target - mean
    squares = jnp.sum(over * jnp.square(centered), axis=axes, keepdims=True)
    return centered * jax.lax.rsqrt(squares / jnp.maximum(count - 1, 1) + EPSILON)


def patch_targets(
    images: jax.Array, patch: int, how: str, valid: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """What patches are painted as.

    Args:
        images: [B, H, W, C], or [B, T, H, W, C] with frames.
        patch: p; static.
        how: see `normalized`; static.
        valid: [B, H, W] bool; None: all.

    Returns:
        Normalized pixels [B, T, p p, C] float32, and which of them count [B, T, p p], or None.
    """
    images = images.astype(jnp.float32)
    if valid is not None:
        images = jnp.where(_of_bands(valid, images), images, 0)
    target = patchify(images, patch)
    target = target.reshape(len(images), -1, patch * patch, images.shape[-1])  # [B, T, p p, C]
    weight = valid_pixels(valid, patch, target.shape[1])
    return normalized(target, weight, how), weight


def without_gaps(images: jax.Array, valid: jax.Array | None) -> jax.Array:
    """Images with 0 for what was never seen and is no number, which no weight takes out of a sum.

    Args:
        images: [B, H, W, C], or [B, T, H, W, C] with frames; normalized, so that 0 is the mean.
        valid: [B, H, W] bool; None: all, and NaN stays what it is.

    Returns:
        Of the same shape.
    """
    if valid is None:
        return images
    return jnp.where(_of_bands(valid, images) | jnp.isfinite(images), images, 0)


def _of_bands(valid: jax.Array, images: jax.Array) -> jax.Array:
    """Bool [B, H, W] with axes of length one for the frames and bands of images."""
    return valid.reshape(len(valid), *[1] * (images.ndim - 4), *valid.shape[1:], 1)


def valid_pixels(valid: jax.Array | None, patch: int, tokens: int) -> jax.Array | None:
    """[B, T, p p] float32 of [B, H, W] bool; groups of bands and frames share them."""
    if valid is None:
        return None
    rows = patchify(valid[..., None].astype(jnp.float32), patch)  # [B, L, p p]
    return jnp.tile(rows, (1, tokens // rows.shape[1], 1))


def masked_mean(errors: jax.Array, hidden: jax.Array, weight: jax.Array | None) -> jax.Array:
    """The mean of patches' mean errors over those that are hidden and have a valid pixel.

    Args:
        errors: [B, T, p p] of pixels.
        hidden: [B, T].
        weight: [B, T, p p]; None: all pixels are valid.

    Returns:
        [] in the type of the errors; 0 where nothing counts.
    """
    if weight is None:
        own, counted = jnp.mean(errors, axis=-1), hidden
    else:
        number = jnp.sum(weight, axis=-1)
        own = jnp.sum(errors * weight, axis=-1) / jnp.maximum(number, 1)
        counted = hidden * (number > 0)
    return jnp.sum(own * counted) / jnp.maximum(jnp.sum(counted), 1)
