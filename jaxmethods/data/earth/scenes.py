r"""Generated scenes of several sensors, with everything that real ones are labeled with.

    class map:  argmax over classes of Gaussian random fields with power k^-2.5, smoothed
    optical:    spectrum of the class x (1 + 0.1 texture) x season x illumination + haze + noise
    radar:      backscatter of the class x Gamma(4, mean 1) speckle

Nothing here imitates a place on Earth: it is there so that every path, from bands to maps, can be
run and tested without a download.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxmethods.data.earth.sensors import SENTINEL2, places_of

CLASSES = ("water", "forest", "grass", "soil", "built")
WATER, FOREST, GRASS, SOIL, BUILT = range(len(CLASSES))
SPECTRA = np.array(
    [  # B1 B2 B3 B4 B5 B6 B7 B8 B8A B9 B10 B11 B12
        [0.08, 0.07, 0.06, 0.04, 0.035, 0.03, 0.03, 0.025, 0.02, 0.02, 0.01, 0.015, 0.01],
        [0.03, 0.03, 0.05, 0.03, 0.08, 0.20, 0.25, 0.28, 0.29, 0.28, 0.01, 0.14, 0.07],
        [0.05, 0.05, 0.09, 0.06, 0.13, 0.28, 0.34, 0.37, 0.38, 0.36, 0.02, 0.24, 0.14],
        [0.09, 0.11, 0.15, 0.20, 0.23, 0.25, 0.27, 0.29, 0.30, 0.30, 0.02, 0.40, 0.36],
        [0.14, 0.15, 0.17, 0.19, 0.20, 0.21, 0.22, 0.23, 0.23, 0.23, 0.02, 0.26, 0.25],
    ]
)
"""Reflectance of every class in Sentinel-2's bands."""
GREENNESS = np.array([0.0, 0.35, 0.6, 0.0, 0.0])
"""How much of a class comes and goes with the season."""
DECIBELS = np.array([[-20.0, -27.0], [-8.0, -14.0], [-11.0, -17.0], [-12.0, -20.0], [-3.0, -10.0]])
"""Mean backscatter of every class, VV and VH."""
SMOOTHING = np.array([3.0, 2.0, 1.5, 1.2, 0.7])
"""Pixels over which a class's field is smoothed."""
LOOKS = 4
BOXES = 3
DIGITAL = 10000.0


class Scenes(NamedTuple):
    """N scenes of H x W pixels."""

    optical: np.ndarray
    """[N, H, W, 13] uint16, reflectance x 10000, in the order of `SENTINEL2`; 0 where nothing was
    seen."""
    radar: np.ndarray
    """[N, H, W, 2] float32 power, VV and VH."""
    labels: np.ndarray
    """[N, H, W] uint8 class of every pixel."""
    valid: np.ndarray
    """[N, H, W] bool, False where the optical sensor saw nothing."""
    later: np.ndarray
    """[N, H, W, 13] uint16, the place in another season, after a change."""
    changed: np.ndarray
    """[N, H, W] bool"""
    boxes: np.ndarray
    """[N, 3, 4, 2] corners (x, y) of the buildings."""
    captions: tuple[str, ...]
    season: np.ndarray
    """[N] day of the year of `optical`."""
    gsd: float
    """Meters of a pixel."""

    def bands(self, names: Sequence[str], later: bool = False) -> np.ndarray:
        """Optical bands by name, [N, H, W, C] uint16."""
        source = self.later if later else self.optical
        return source[..., places_of(tuple(SENTINEL2), names, "scenes")]

    def main_pairs(self) -> np.ndarray:
        """[N] int32: which two classes cover most of a scene, of ten pairs."""
        counts = np.stack([(self.labels == own).mean((1, 2)) for own in range(len(CLASSES))], 1)
        two = np.sort(np.argsort(-counts, axis=1, kind="stable")[:, :2], axis=1)
        pairs = [(a, b) for a in range(len(CLASSES)) for b in range(a + 1, len(CLASSES))]
        return np.array([pairs.index(tuple(own)) for own in two.tolist()], np.int32)


def caption(first: str, second: str) -> str:
    """What is said of a scene whose largest classes are these two."""
    return f"A satellite image of {first} with some {second}."


def synthetic_scenes(seed: int, number: int, size: int, gsd: float = 10.0) -> Scenes:
    """Draws scenes; the same seed gives the same ones.

    Args:
        seed: of everything that is random.
        number: N.
        size: pixels along a side.
        gsd: meters of a pixel, a multiple of 10: scenes are drawn at 10 m and averaged.

    Returns:
        The scenes.

    Raises:
        ValueError: a pixel that is no multiple of 10 m.
    """
    factor = round(gsd / 10)
    if factor < 1 or factor * 10 != gsd:
        raise ValueError(f"gsd: expected a multiple of 10 meters, got {gsd}")
    parts = [_one(np.random.default_rng((seed, own)), size * factor) for own in range(number)]
    stacked = [np.stack(own) for own in zip(*parts, strict=True)]
    optical, radar, labels, valid, later, changed, boxes, season = stacked
    if factor > 1:
        optical, radar, later = (_averaged(own, factor) for own in (optical, radar, later))
        middle = factor // 2
        labels, valid, changed = (
            own[:, middle::factor, middle::factor] for own in (labels, valid, changed)
        )
        boxes = boxes / factor
    digital = [np.round(DIGITAL * own).clip(1, 65535).astype(np.uint16) for own in (optical, later)]
    digital[0] *= valid[..., None]
    captions = tuple(_caption(own) for own in labels)
    power = radar.astype(np.float32)
    return Scenes(
        digital[0], power, labels, valid, digital[1], changed, boxes, captions, season, float(gsd)
    )


def _one(rng: np.random.Generator, size: int) -> tuple[np.ndarray, ...]:
    fields = np.stack([_field(rng, size, SMOOTHING[own]) for own in range(len(CLASSES))])
    # Offsets make scenes differ in what is common.
    fields += 0.7 * rng.standard_normal((len(CLASSES), 1, 1))
    labels = np.argmax(fields, axis=0).astype(np.uint8)
    boxes = np.stack([_rectangle(rng, size) for _ in range(BOXES)])
    for own in boxes:
        labels[_inside(own, size)] = BUILT
    season = int(rng.integers(1, 366))
    optical = _optical(rng, labels, season)
    changed = _inside(_rectangle(rng, size, 0.15, 0.4), size)
    after = labels.copy()
    after[changed] = (labels[changed] + 1 + rng.integers(0, len(CLASSES) - 1)) % len(CLASSES)
    later = _optical(rng, after, (season + 120) % 365 + 1)
    mean = 10 ** (DECIBELS[labels] / 10)
    radar = mean * rng.gamma(LOOKS, 1 / LOOKS, mean.shape)
    valid = np.ones((size, size), bool)
    if rng.random() < 0.2:  # the edge of a swath
        valid = np.add.outer(np.arange(size), np.arange(size)) >= size // 3
    return optical, radar, labels, valid, later, changed, boxes, np.array(season)


def _optical(rng: np.random.Generator, labels: np.ndarray, season: int) -> np.ndarray:
    size = len(labels)
    texture = np.stack([_field(rng, size, 0.3) for _ in range(len(CLASSES))])
    own = np.take_along_axis(texture, labels[None].astype(int), axis=0)[0]
    summer = (1 - np.cos(2 * np.pi * season / 365)) / 2
    green = 1 - GREENNESS[labels] * (1 - summer)
    infrared = np.array([wave > 0.7 for wave in SENTINEL2.values()])
    scale = np.where(infrared, green[..., None], 1.0) * (1 + 0.1 * own[..., None])
    haze = rng.uniform(0, 0.03) * np.exp(-(np.array(list(SENTINEL2.values())) - 0.443) / 0.2)
    reflectance = SPECTRA[labels] * scale * rng.uniform(0.8, 1.2) + haze
    return np.maximum(reflectance + 0.002 * rng.standard_normal(reflectance.shape), 1e-4)


def _field(rng: np.random.Generator, size: int, smoothing: float) -> np.ndarray:
    """A Gaussian random field [size, size] of power k^-2.5, mean 0 and deviation 1."""
    rate = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij"))
    amplitude = np.where(rate > 0, np.maximum(rate, 1e-9) ** -1.25, 0.0)
    amplitude *= np.exp(-2 * (np.pi * rate * smoothing) ** 2)
    field = np.fft.irfft2(amplitude * np.fft.rfft2(rng.standard_normal((size, size))), (size, size))
    return (field - field.mean()) / max(field.std(), 1e-12)


def _rectangle(
    rng: np.random.Generator, size: int, smallest: float = 0.06, largest: float = 0.18
) -> np.ndarray:
    """[4, 2] corners (x, y), counterclockwise for y that points down, of any direction."""
    half = rng.uniform(smallest, largest, 2) * size / 2
    angle = rng.uniform(0, np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    return corners @ turn.T + rng.uniform(0.2, 0.8, 2) * size


def _inside(corners: np.ndarray, size: int) -> np.ndarray:
    """[size, size] bool: whether a pixel's center lies within."""
    x, y = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
    inside = np.ones((size, size), bool)
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        side = (end[0] - start[0]) * (y - start[1]) - (end[1] - start[1]) * (x - start[0])
        inside &= side >= 0
    return inside


def _averaged(images: np.ndarray, factor: int) -> np.ndarray:
    number, height, width, bands = images.shape
    split = images.reshape(number, height // factor, factor, width // factor, factor, bands)
    return split.mean((2, 4))


def _caption(labels: np.ndarray) -> str:
    counts = np.bincount(labels.reshape(-1), minlength=len(CLASSES))
    first, second = np.argsort(-counts, kind="stable")[:2]
    return caption(CLASSES[first], CLASSES[second])
