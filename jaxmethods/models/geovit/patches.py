r"""Images as rows of pixels, one row a patch, and rows of pixels as tokens.

A convolution whose stride is its width is a matrix product of patches, and much faster as one on
CPU. Kernels keep PyTorch's layout [D, C, p, p], so rows are flattened as (channel, row, column);
targets of MAE are flattened as (row, column, channel).
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxmethods.models.clip.vit import linear
from jaxmethods.models.geovit.config import EncoderConfig

Order = Literal["channel_first", "channel_last"]


def patchify(images: jax.Array, patch: int, order: Order = "channel_last") -> jax.Array:
    """Cuts images into patches, row by row.

    Args:
        images: [..., H, W, C], H and W multiples of p.
        patch: p; static.
        order: of the entries of a patch; static.

    Returns:
        [..., L, p p C].

    Raises:
        ValueError: sides that the patch doesn't divide.
    """
    *leading, height, width, channels = images.shape
    if height % patch or width % patch:
        raise ValueError(
            f"images: expected sides that are multiples of patch = {patch}, got {height} x {width}"
        )
    rows, columns = height // patch, width // patch
    split = images.reshape(-1, rows, patch, columns, patch, channels)  # [B, r, p, c, p, C]
    axes = (0, 1, 3, 2, 4, 5) if order == "channel_last" else (0, 1, 3, 5, 2, 4)
    return split.transpose(axes).reshape(*leading, rows * columns, patch * patch * channels)


def unpatchify(
    rows: jax.Array, patch: int, channels: int, order: Order = "channel_last"
) -> jax.Array:
    """Undoes `patchify` for square images.

    Args:
        rows: [..., L, p p C], L a square.
        patch: p; static.
        channels: C; static.
        order: of the entries of a patch; static.

    Returns:
        [..., H, W, C].
    """
    *leading, length, _ = rows.shape
    grid = round(length**0.5)
    if grid * grid != length:
        raise ValueError(f"rows: expected those of a square grid, got {length}")
    if order == "channel_last":
        split = rows.reshape(-1, grid, grid, patch, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    else:
        split = rows.reshape(-1, grid, grid, channels, patch, patch).transpose(0, 1, 4, 2, 5, 3)
    return split.reshape(*leading, grid * patch, grid * patch, channels)


def gather(rows: jax.Array, ids: jax.Array) -> jax.Array:
    """[B, K, ...]: rows `ids` [B, K] of [B, L, ...]."""
    return jnp.take_along_axis(rows, ids.reshape(*ids.shape, *[1] * (rows.ndim - 2)), axis=1)


def cut(config: EncoderConfig, images: jax.Array) -> list[jax.Array]:
    """The pixels of every token, before they are embedded.

    Args:
        config: of the encoder; static.
        images: [B, H, W, C], or [B, T, H, W, C] with frames.

    Returns:
        One array [B, L, p p C] for each group of bands; of all bands and frames, one
        [B, T L, p p C].

    Raises:
        ValueError: images of another size, number of bands or of frames.
    """
    _check(config, images)
    if config.padding:
        # A convolution with zero padding begins before the image and leaves out its end.
        edge = config.padding
        images = jnp.pad(images, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
        side = (config.image_size + 2 * edge) // config.patch * config.patch
        images = images[:, :side, :side]
    if config.embedding == "grouped":
        return [
            patchify(images[..., jnp.asarray(group)], config.patch, "channel_first")
            for group in config.groups
        ]
    rows = patchify(images, config.patch, "channel_first")
    if images.ndim == 5:
        rows = rows.reshape(len(rows), -1, rows.shape[-1])  # [B, T L, C p p]
    return [rows]


def embed(params: Any, rows: list[jax.Array]) -> jax.Array:
    """Tokens from the pixels that `cut` gives.

    Args:
        params: {"weight" [D, C, p, p], "bias" [D]}; of groups, {"0": ..., "1": ...}.
        rows: one array [B, L, C p p] for each group.

    Returns:
        [B, G L, D], all patches of group 0 first.
    """
    kernels = [params[str(group)] for group in range(len(rows))] if "0" in params else [params]
    tokens = []
    for own, kernel in zip(rows, kernels, strict=True):
        weight = kernel["weight"]
        flat = {"weight": weight.reshape(len(weight), -1), "bias": kernel["bias"]}
        tokens.append(linear(flat, own.astype(weight.dtype)))
    return jnp.concatenate(tokens, axis=1)


def _check(config: EncoderConfig, images: jax.Array) -> None:
    frames = config.embedding == "tubelet" or config.positions == "temporal"
    side = config.image_size
    channels = images.shape[-1] if config.embedding == "per_sensor" else config.channels
    expected = (side, side, channels)
    if frames:
        expected = (config.frames, *expected)
    if images.shape[1:] != expected:
        wanted = ", ".join(map(str, expected))
        raise ValueError(f"images: expected [B, {wanted}], got {images.shape}")
