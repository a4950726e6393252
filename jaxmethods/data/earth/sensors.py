"""What sensors measure: names of bands, their wavelengths, and statistics by name.

Bands are chosen and normalized by name, never by their place in a file: EuroSAT's multispectral
files hold B8A last, and readers that went by number normalized the wrong bands for years.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxmethods.errors import DataError

SENTINEL2 = {
    "B1": 0.443,
    "B2": 0.490,
    "B3": 0.560,
    "B4": 0.665,
    "B5": 0.705,
    "B6": 0.740,
    "B7": 0.783,
    "B8": 0.842,
    "B8A": 0.865,
    "B9": 0.945,
    "B10": 1.375,
    "B11": 1.610,
    "B12": 2.190,
}
"""Central wavelengths in micrometers, in the order of L1C products."""
EUROSAT_MS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B9", "B10", "B11", "B12", "B8A")
"""The order in EuroSAT's GeoTIFFs."""
RGB = {"R": 0.665, "G": 0.560, "B": 0.490}
SENTINEL1 = {"VV": 3.75, "VH": 3.75}
"""DOFA's code for radar, which is no wavelength of it (5.5 cm)."""
WAVELENGTHS = {**SENTINEL2, **RGB, **SENTINEL1}


class Statistics(NamedTuple):
    """Mean and standard deviation of bands, and the unit they are in."""

    names: tuple[str, ...]
    mean: np.ndarray
    """[C]"""
    std: np.ndarray
    """[C]"""
    largest: float
    """The value that stands for full scale: 255 of bytes, 10000 of Sentinel-2's numbers, 1 of
    reflectances and of bytes that were divided by 255."""

    def of(self, names: Sequence[str]) -> Statistics:
        """Those of some bands, in their order. Raises `DataError` for one that isn't there."""
        rows = places_of(self.names, names, "statistics")
        return Statistics(tuple(names), self.mean[rows], self.std[rows], self.largest)


def _statistics(
    names: Sequence[str], mean: list[float], std: list[float], largest: float
) -> Statistics:
    return Statistics(tuple(names), np.array(mean), np.array(std), largest)


FMOW_SENTINEL = _statistics(
    tuple(SENTINEL2),
    [
        *(1370.19, 1184.38, 1120.77, 1136.26, 1263.74, 1645.40, 1846.87),
        *(1762.60, 1972.62, 582.73, 14.77, 1732.16, 1247.92),
    ],
    [
        *(633.15, 650.28, 712.13, 965.23, 948.98, 1108.07, 1258.36),
        *(1233.15, 1364.39, 472.38, 14.31, 1310.37, 1087.60),
    ],
    10000.0,
)
"""Sentinel-2 L1C as SatMAE was trained on it."""
IMAGENET = _statistics(tuple(RGB), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 1.0)
FMOW_RGB = _statistics(tuple(RGB), [0.4182, 0.4215, 0.3991], [0.2877, 0.2754, 0.2764], 1.0)
CLIP = _statistics(
    tuple(RGB),
    [0.48145466, 0.4578275, 0.40821073],
    [0.26862954, 0.26130258, 0.27577711],
    1.0,
)


def places_of(present: Sequence[str], wanted: Sequence[str], what: str) -> np.ndarray:
    """Where the wanted bands stand among those present.

    Args:
        present: names in the order of the file.
        wanted: names in the order that is needed.
        what: names the file in the error.

    Returns:
        [len(wanted)] indices.

    Raises:
        DataError: a band is missing, with the names that are there.
    """
    missing = [name for name in wanted if name not in present]
    if missing:
        raise DataError(f"{what}: expected band {missing[0]}, got {', '.join(present)}")
    return np.array([list(present).index(name) for name in wanted], int)


def wavelengths_of(names: Sequence[str]) -> np.ndarray:
    """[C] float32 micrometers of bands by name. Raises `DataError` for one that isn't known."""
    unknown = [name for name in names if name not in WAVELENGTHS]
    if unknown:
        raise DataError(f"bands: expected some of {', '.join(WAVELENGTHS)}, got {unknown[0]}")
    return np.array([WAVELENGTHS[name] for name in names], np.float32)
