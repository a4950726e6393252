r"""Encoders of places on the globe: GeoCLIP's, and features of longitude and latitude.

    v = (66.50336 / 180) EqualEarth(latitude, longitude)
    e = sum_level Head(relu ... relu(W_1 [cos 2 pi B v, sin 2 pi B v] + b_1) ...)

GeoCLIP (Vivanco Cepeda et al. 2023, arXiv 2309.16020, section 3.2): three levels of Gaussian random
Fourier features, each with a perceptron of its own, are added. `spherical_harmonics` are the
features of SatCLIP (arXiv 2311.17179), `wrapped` those of CSP (arXiv 2305.01118): sines and cosines
of both angles at several octaves, without a seam at the date line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.models import hub
from jaxmethods.models.clip.vit import linear
from jaxmethods.models.hub.folders import HubError, some_of
from jaxmethods.models.hub.parameters import as_weights

EQUAL_EARTH = (1.340264, -0.081106, 0.000893, 0.003796)
SCALE = 66.50336
LAYERS = (1, 3, 5)
"""Numbers of the dense layers in a level's module, which begins with B."""


def equal_earth(coordinates: np.ndarray) -> np.ndarray:
    """The Equal Earth projection (Savric et al. 2019) as GeoCLIP scales and rounds it.

    Every operation is rounded to float32, whatever the library's sines do with their last bit: the
    finest features turn it into a thousand times as much.

    Args:
        coordinates: [N, 2] latitude and longitude in degrees.

    Returns:
        [N, 2] float64 x and y, of about -1 to 1, with float32 values.
    """
    latitude, longitude = _single(_single(coordinates) * (np.pi / 180)).T
    a1, a2, a3, a4 = EQUAL_EARTH
    root = _single(np.sqrt(3.0))
    theta = _single(np.arcsin(_single(_single(root / 2) * _single(np.sin(latitude)))))

    def term(factor: float, power: int) -> np.ndarray:
        return _single(_single(factor) * _single(theta**power))

    stretch = _single(_single(term(9 * a4, 8) + term(7 * a3, 6)) + term(3 * a2, 2))
    stretch = _single(3 * _single(stretch + _single(a1)))
    x = _single(_single(_single(2 * root * longitude) * _single(np.cos(theta))) / stretch)
    y = _single(_single(term(a4, 9) + term(a3, 7)) + term(a2, 3))
    y = _single(y + term(a1, 1))
    # The projection is in radians, GeoCLIP's factor is for degrees.
    return _single(_single(np.stack([x, y], axis=1) * _single(SCALE)) / 180)


def _single(values: object) -> np.ndarray:
    """Rounded to float32, as float64."""
    return np.asarray(values, np.float64).astype(np.float32).astype(np.float64)


def load_geoclip(path: str | Path) -> Any:
    """Reads GeoCLIP's location encoder.

    Args:
        path: a safetensors file with the names of its state dict (`LocEnc0.capsule.0.b`, ...).

    Returns:
        One tree for each level, {"frequencies" [n, 2], "layers", "head"}; float32.

    Raises:
        HubError: it is no such file.
    """
    folder = hub.open_file(path)
    return geoclip_from_tensors({name: folder.view(name) for name in folder.tensors})


def geoclip_from_tensors(tensors: Mapping[str, Any]) -> Any:
    """GeoCLIP's location encoder from arrays by name, see `load_geoclip`."""
    left = dict(tensors)
    levels = sorted({name.split(".")[0] for name in left if name.startswith("LocEnc")})
    missing: list[str] = []

    def take(name: str) -> np.ndarray:
        if name not in left:
            missing.append(name)
            return np.zeros((), np.float32)
        return as_weights(name, left.pop(name))

    def dense(name: str) -> dict[str, jax.Array]:
        return {part: jnp.asarray(take(f"{name}.{part}")) for part in ("weight", "bias")}

    found = [
        {
            "frequencies": take(f"{level}.capsule.0.b"),
            "layers": [dense(f"{level}.capsule.{number}") for number in LAYERS],
            "head": dense(f"{level}.head.0"),
        }
        for level in levels
    ]
    if missing or left or not levels:
        raise HubError(
            "location encoder: expected the tensors of LocEnc0, LocEnc1, ...; "
            f"missing: {some_of(missing) or 'none'}, unknown: {some_of(sorted(left)) or 'none'}"
        )
    return found


def geoclip(params: Any, coordinates: np.ndarray) -> jax.Array:
    """GeoCLIP's embedding of places, not normalized.

    Coordinates are rounded as in the published code (`equal_earth`; with float64 they are 3e-4 of
    the largest entry away from its numbers). Angles are computed on the host, the perceptrons on
    the device.

    Args:
        params: of `load_geoclip`.
        coordinates: [N, 2] latitude and longitude in degrees.

    Returns:
        [N, P] float32.

    Raises:
        ValueError: coordinates that are none.
    """
    places = _single(2 * np.pi * equal_earth(_checked(coordinates)))
    total = jnp.zeros(())
    for level in params:
        angles = places @ np.asarray(level["frequencies"], np.float64).T
        features = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
        x = jnp.asarray(features, jnp.float32)
        for layer in level["layers"]:
            x = jax.nn.relu(linear(layer, x))
        total = total + linear(level["head"], x)
    return total


def wrapped(coordinates: np.ndarray, octaves: int) -> np.ndarray:
    """Sines and cosines of both angles at several octaves.

    Args:
        coordinates: [N, 2] latitude and longitude in degrees.
        octaves: K.

    Returns:
        [N, 4 K] float64.
    """
    angles = np.radians(_checked(coordinates))[:, :, None] * 2.0 ** np.arange(octaves)  # [N, 2, K]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).reshape(len(angles), -1)


def spherical_harmonics(coordinates: np.ndarray, degree: int) -> np.ndarray:
    """Real orthonormal spherical harmonics up to a degree.

    Args:
        coordinates: [N, 2] latitude and longitude in degrees.
        degree: the largest l, with 2 l + 1 harmonics of each.

    Returns:
        [N, (degree + 1)^2] float64, l after l, m from -l to l.
    """
    latitude, longitude = np.radians(_checked(coordinates)).T
    legendre = _legendre(np.sin(latitude), degree)
    columns = []
    for order in range(degree + 1):
        for m in range(-order, order + 1):
            size = abs(m)
            norm = math.sqrt(
                (2 * order + 1)
                / (4 * math.pi)
                * math.factorial(order - size)
                / math.factorial(order + size)
            )
            turn = np.cos(size * longitude) if m >= 0 else np.sin(size * longitude)
            factor = norm * (math.sqrt(2) if m else 1.0)
            columns.append(factor * legendre[order, size] * turn)
    return np.stack(columns, axis=1)


def _legendre(x: np.ndarray, degree: int) -> dict[tuple[int, int], np.ndarray]:
    """Associated Legendre functions P_l^m of [N], without the sign (-1)^m."""
    made = {(0, 0): np.ones_like(x)}
    root = np.sqrt(np.maximum(1 - x * x, 0))
    for m in range(1, degree + 1):
        made[m, m] = (2 * m - 1) * root * made[m - 1, m - 1]
    for m in range(degree):
        made[m + 1, m] = (2 * m + 1) * x * made[m, m]
    for m in range(degree + 1):
        for order in range(m + 2, degree + 1):
            above = (2 * order - 1) * x * made[order - 1, m]
            made[order, m] = (above - (order + m - 1) * made[order - 2, m]) / (order - m)
    return made


def _checked(coordinates: np.ndarray) -> np.ndarray:
    places = np.asarray(coordinates, np.float64)
    inside = places.ndim == 2 and places.shape[1] == 2
    if not inside or not np.all(np.abs(places) <= (90, 180)):
        raise ValueError(
            "coordinates: expected [N, 2] latitudes of -90 to 90 and longitudes of -180 to 180 "
            f"degrees, got {places.shape}" + ("" if not inside else " with others among them")
        )
    return places
