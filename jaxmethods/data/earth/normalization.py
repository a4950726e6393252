r"""Pixels as a model wants them, by one of two named policies, and never by a guess.

    dataset:  (x - mean) / std             of the training images themselves
    model:    (x / full scale - mean) / std        with what the model was trained with

Numbers that move by ten points follow from a wrong choice that nothing reports. So `model` without
the model's statistics is an error, and so are pixels in another unit than the statistics: numbers
that were scaled before, or raw ones where scaled ones are expected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxmethods.data.earth.sensors import Statistics
from jaxmethods.errors import DataError

Policy = Literal["dataset", "model"]
SMALLEST_POWER = 1e-6
LEAST_SHARE = 32 * float(np.finfo(np.float32).eps)
"""A band that varies less, as a share of its mean, is a constant with its rounding: it is divided
by 1."""


def dataset_statistics(
    images: np.ndarray, names: Sequence[str], valid: np.ndarray | None = None
) -> Statistics:
    """Mean and deviation of every band over training images; of one that doesn't vary, 1.

    Args:
        images: [N, H, W, C] of any type.
        names: of the bands.
        valid: [N, H, W] bool; None: all pixels.

    Returns:
        The statistics, in the unit of the images.

    Raises:
        DataError: no valid pixel, pixels that are NaN or infinite, or names that don't fit.
    """
    _check_names(images, names)
    pixels = images.reshape(-1, images.shape[-1]) if valid is None else images[valid]
    if not len(pixels):
        raise DataError("images: expected a pixel with data, got none")
    wide = pixels.astype(np.float64)
    broken = ~np.isfinite(wide).all(axis=0)
    if broken.any():
        raise DataError(
            f"images: expected finite pixels, got NaN or infinity in band "
            f"{names[int(np.argmax(broken))]}; `valid` leaves pixels without data out"
        )
    scale = float(np.iinfo(images.dtype).max) if images.dtype == np.uint8 else float(wide.max())
    mean, std = wide.mean(0), wide.std(0)
    # What is constant in training would be a million where a test image differs by one.
    std = np.where(std > LEAST_SHARE * np.abs(mean), std, 1.0)
    return Statistics(tuple(names), mean, std, scale)


def normalize(
    images: np.ndarray,
    names: Sequence[str],
    policy: Policy,
    statistics: Statistics | None,
    *,
    full_scale: float | None = None,
) -> np.ndarray:
    """Normalizes images band by band, by name.

    Args:
        images: [..., C]; integers are cast before anything else.
        names: of the bands, in the order of the images.
        policy: "dataset" or "model".
        statistics: of `dataset_statistics`, or the model's.
        full_scale: with `model`, the value of the images that stands for full scale: 255, 10000.
            None: 255 of bytes; other types must say.

    Returns:
        [..., C] float32.

    Raises:
        DataError: no statistics, a band that they don't have, a unit that isn't said, or pixels
            that were scaled before.
    """
    _check_names(images, names)
    if statistics is None:
        raise DataError(
            f"normalization: expected the {policy}'s mean and standard deviation of every band, "
            "got none; there is no default for them"
        )
    own = statistics.of(names)
    wide = images.astype(np.float32)
    if policy == "model":
        if full_scale is None and images.dtype != np.uint8:
            raise DataError(
                f"full_scale: expected the value that is full scale in these {images.dtype} "
                "images (255, 10000, 1), got none"
            )
        from_unit = 255.0 if full_scale is None else full_scale
        _check_unit(wide, from_unit)
        wide = wide * np.float32(own.largest / from_unit)
    elif own.largest >= 100:
        _check_unit(wide, own.largest)
    return (wide - own.mean.astype(np.float32)) / own.std.astype(np.float32)


def minmax_2sd(images: np.ndarray, names: Sequence[str], statistics: Statistics) -> np.ndarray:
    """SatMAE's scaling without its rounding: mean -+ 2 std become 0 and 1, the rest is cut off.

    Args:
        images: [..., C] in the unit of the statistics.
        names: of the bands.
        statistics: of those bands.

    Returns:
        [..., C] float32 between 0 and 1.
    """
    own = statistics.of(names)
    low = own.mean - 2 * own.std
    scaled = (images.astype(np.float64) - low) / (4 * own.std)
    return np.clip(scaled, 0, 1).astype(np.float32)


def satmae_uint8(images: np.ndarray, names: Sequence[str], statistics: Statistics) -> np.ndarray:
    """SatMAE's scaling to bytes, cut off and not rounded, for its checkpoints.

    Args:
        images: [..., C] in the unit of the statistics.
        names: of the bands.
        statistics: of those bands.

    Returns:
        [..., C] uint8; over 255 they are what SatMAE's encoder gets.
    """
    own = statistics.of(names)
    low = own.mean - 2 * own.std
    scaled = (images.astype(np.float64) - low) / (4 * own.std) * 255.0
    return np.clip(scaled, 0, 255).astype(np.uint8)


def decibels(power: np.ndarray) -> np.ndarray:
    """10 log10 of radar backscatter; powers below 1e-6 count as 1e-6, float32."""
    return (10 * np.log10(np.maximum(power.astype(np.float64), SMALLEST_POWER))).astype(np.float32)


def _check_names(images: np.ndarray, names: Sequence[str]) -> None:
    if images.shape[-1] != len(names):
        raise DataError(
            f"bands: expected {len(names)} ({', '.join(names)}), got images of {images.shape[-1]}"
        )


def _check_unit(images: np.ndarray, full_scale: float) -> None:
    """Refuses pixels that can't be in the unit that is said: scaled twice, or not at all."""
    largest = float(images.max(initial=0.0))
    if full_scale >= 100 and 0 < largest <= 2:
        raise DataError(
            f"images: expected values up to about {full_scale:g}, got at most {largest:g}: they "
            "were scaled before"
        )
    if full_scale <= 2 and largest > 20:
        raise DataError(
            f"images: expected values up to about {full_scale:g}, got {largest:g}: they are not "
            "scaled yet"
        )
