r"""Resizing of grids as PyTorch computes it, by one matrix along each axis.

    y = R_h x R_w^T,     R [out, in] has the rows of the filter at half-pixel centers

- `bicubic`: Keys' kernel with a = -0.75, without antialiasing, edges repeated. What checkpoints'
  position tables are resized with; `jax.image.resize` has a = -0.5 and antialiases.
- `bilinear`: two neighbors, without antialiasing, edges repeated.
- `area`: means of the pixels that an output pixel touches (adaptive average pooling).
- `nearest`: the pixel at floor(i * in / out).
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.numerics.precision import wide

Filter = Literal["bicubic", "bilinear", "area", "nearest"]
A = -0.75
"""Keys' parameter in PyTorch."""


def resize(images: jax.Array, size: tuple[int, int], how: Filter) -> jax.Array:
    """Resizes images to `size`, whatever their proportions.

    Args:
        images: [..., H, W, C] floating.
        size: (height, width) of the result; static.
        how: the filter; static.

    Returns:
        [..., height, width, C] in the type of the images.

    Raises:
        ValueError: images of whole numbers, in whose type the filter's weights would be 0.
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images: expected floating-point ones, got {images.dtype}")
    own = wide(images)  # as PyTorch: in bfloat16 the weights of a row don't sum to 1
    rows = jnp.asarray(matrix(images.shape[-3], size[0], how), own.dtype)  # [height, H]
    columns = jnp.asarray(matrix(images.shape[-2], size[1], how), own.dtype)  # [width, W]
    tall = jnp.einsum("ph,...hwc->...pwc", rows, own)
    return jnp.einsum("qw,...pwc->...pqc", columns, tall).astype(images.dtype)


def matrix(before: int, after: int, how: Filter) -> np.ndarray:
    """The filter [after, before] along one axis, float64; its rows sum to 1."""
    if how == "area":
        return _area(before, after)
    if how == "nearest":
        return np.eye(before)[np.arange(after) * before // after]
    centers = (np.arange(after) + 0.5) * before / after - 0.5
    first = np.floor(centers).astype(int)
    offset = centers - first
    if how == "bilinear":
        # PyTorch clamps the center itself, which repeats the edge as clamped indices do.
        taps = [(0, 1 - offset), (1, offset)]
    else:
        taps = [(step, _keys(np.abs(offset - step))) for step in (-1, 0, 1, 2)]
    weights = np.zeros((after, before))
    for step, weight in taps:
        np.add.at(weights, (np.arange(after), np.clip(first + step, 0, before - 1)), weight)
    return weights


def _keys(distance: np.ndarray) -> np.ndarray:
    near = ((A + 2) * distance - (A + 3)) * distance**2 + 1
    far = ((A * distance - 5 * A) * distance + 8 * A) * distance - 4 * A
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def _area(before: int, after: int) -> np.ndarray:
    begin = np.arange(after) * before // after
    end = -(-(np.arange(1, after + 1) * before) // after)
    inside = (np.arange(before) >= begin[:, None]) & (np.arange(before) < end[:, None])
    return inside / inside.sum(1, keepdims=True)
