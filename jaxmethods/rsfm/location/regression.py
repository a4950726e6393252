r"""Numbers and classes of places, predicted from features of their coordinates.

    ridge:  min_W |Y - X W|^2 + lam |W|^2,       lam: least error of leaving one place out,
            e_i / (1 - h_ii),    h = X (X^T X + lam)^-1 X^T
    nearest: the mean of the k nearest places on the sphere

Manvi et al. 2023 (GeoLLM, arXiv 2310.06213) judge by Pearson's r^2 and the mean absolute error.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.numerics.precision import spread_or_one, wide

LAMS = tuple(float(own) for own in np.logspace(-4, 4, 17))


class Ridge(NamedTuple):
    """A linear map of standardized features."""

    mean: jax.Array
    """[D]"""
    scale: jax.Array
    """[D] what features are divided by."""
    weight: jax.Array
    """[D, K]"""
    bias: jax.Array
    """[K]"""
    lam: jax.Array
    """[] the penalty that was chosen."""

    def __call__(self, features: jax.Array) -> jax.Array:
        """Predictions [N, K] of features [N, D]."""
        return (features - self.mean) / self.scale @ self.weight + self.bias


def fit_ridge(features: jax.Array, targets: jax.Array, lams: tuple[float, ...] = LAMS) -> Ridge:
    """Fits a ridge regression, with the penalty that predicts left-out places best.

    Args:
        features: [N, D].
        targets: [N, K].
        lams: penalties for sums over places.

    Returns:
        The map.
    """
    features, targets = wide(features), wide(targets)
    mean, scale = jnp.mean(features, axis=0), jnp.std(features, axis=0)
    scale = spread_or_one(scale, mean)
    middle = jnp.mean(targets, axis=0)
    x, y = (features - mean) / scale, targets - middle
    u, s, vt = jnp.linalg.svd(x, full_matrices=False)
    turned = u.T @ y  # [R, K]
    # Residuals e and 1 - h of features that fit everything are small differences, and 0 / 0 in
    # float32: both are sums of what is not fitted. The bias has a leverage of 1 / N.
    live = s > s[0] * max(x.shape) * jnp.finfo(s.dtype).eps
    own = jnp.where(live, u, 0)
    everything = jnp.sum(live) == len(x) - 1
    beyond = jnp.where(everything, 0, y - own @ turned)
    free = jnp.where(everything, 0, 1 - 1 / len(x) - jnp.sum(own**2, axis=1))

    def error(lam: jax.Array) -> jax.Array:
        left = lam / (s**2 + lam)
        residual = beyond + own @ (left[:, None] * turned)
        return jnp.mean(jnp.square(residual / (free + jnp.sum(own**2 * left, axis=1))[:, None]))

    candidates = jnp.asarray(lams, x.dtype)
    lam = candidates[jnp.argmin(jax.vmap(error)(candidates))]
    weight = vt.T @ ((s / (s**2 + lam))[:, None] * turned)
    return Ridge(mean, scale, weight, middle, lam)


def nearest_places(
    coordinates: np.ndarray, targets: np.ndarray, queries: np.ndarray, k: int = 5
) -> np.ndarray:
    """Means of the nearest places.

    Args:
        coordinates: [N, 2] latitude and longitude in degrees.
        targets: [N, K] of them.
        queries: [Q, 2].
        k: places that count.

    Returns:
        [Q, K].

    Raises:
        ValueError: more neighbors than places.
    """
    if not 0 < k <= len(coordinates):
        raise ValueError(f"k: expected 1 to the {len(coordinates)} places, got {k}")
    order = np.argsort(kilometers(queries, coordinates), axis=1, kind="stable")[:, :k]
    return targets[order].mean(1)


def kilometers(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Distances on the sphere.

    Args:
        first: [N, 2] latitude and longitude in degrees.
        second: [M, 2].

    Returns:
        [N, M] float64.
    """
    (a, b), (c, d) = np.radians(first).T, np.radians(second).T
    # The haversine keeps small distances, which an arc cosine rounds away.
    half = np.sin((a[:, None] - c) / 2) ** 2
    half += np.cos(a)[:, None] * np.cos(c) * np.sin((b[:, None] - d) / 2) ** 2
    return 2 * EARTH_RADIUS * np.arcsin(np.sqrt(np.clip(half, 0, 1)))


def squared_correlation(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Pearson's r^2 of [N] numbers; 0 where one of them is constant."""
    x, y = np.asarray(truth) - np.mean(truth), np.asarray(predicted) - np.mean(predicted)
    length = float(np.sum(x * x) * np.sum(y * y))
    return float(np.sum(x * y)) ** 2 / length if length > 0 else 0.0


EARTH_RADIUS = 6371.0
"""Kilometers, the mean radius."""
