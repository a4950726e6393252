"""Spectra of weight matrices: the bulk that noise explains, spikes, and the tail's exponent.

    bulk      Marchenko-Pastur of a random matrix of the same shape and variance
    spikes    eigenvalues of W^T W / n beyond its edge
    alpha     exponent of rho(t) ~ t^-alpha above t_min, by maximum likelihood with t_min chosen by
              the Kolmogorov-Smirnov distance                     (Clauset, Shalizi, Newman 2009)

(Martin, Mahoney, "Implicit self-regularization in deep neural networks", 2021.) alpha is fitted
whether or not the tail is a power law: `distance` says how well it fits.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.interpret.curvature.marchenko_pastur import density, edges
from jaxmethods.interpret.problem import Estimate
from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.precision import wide


class WeightSpectrum(NamedTuple):
    """One matrix."""

    eigenvalues: jax.Array
    """[d], ascending, of W^T W / n for the longer side n."""
    variance: jax.Array
    """[], of the bulk's entries, fitted to the median."""
    edge: jax.Array
    """[], the bulk's upper end."""
    spikes: jax.Array
    """[], eigenvalues beyond the edge with the fluctuations of a finite matrix."""
    alpha: Estimate
    """The tail's exponent; its samples are the eigenvalues in the tail."""
    start: jax.Array
    """[], t_min."""
    distance: jax.Array
    """[], Kolmogorov-Smirnov, of the tail from the power law."""


@compiled()
def weight_spectrum(matrix: jax.Array) -> WeightSpectrum:
    """Bulk, spikes and tail of a matrix [m, n].

    Args:
        matrix: weights; those of a convolution reshaped to two axes.

    Returns:
        The spectrum's numbers.

    Raises:
        ValueError: not a matrix, or a side shorter than four.
    """
    if matrix.ndim != 2 or min(matrix.shape) < 4:
        raise ValueError(f"matrix: expected two sides of at least 4, got {matrix.shape}")
    long, short = max(matrix.shape), min(matrix.shape)
    values = jnp.sort(jnp.linalg.svd(wide(matrix), compute_uv=False) ** 2) / long
    ratio = short / long
    # The median of a bulk of variance 1, so that spikes don't widen the bulk they are judged by.
    variance = jnp.median(values) / _bulk_median(ratio)
    _, edge = edges(ratio, variance)
    # Tracy-Widom: the largest eigenvalue of noise is within n^(-2/3) of the edge, in this unit.
    unit = variance * (1 + ratio**0.5) * (1 + ratio**-0.5) ** (1 / 3) * long ** (-2 / 3)
    alpha, start, distance = _power_law(values)
    return WeightSpectrum(
        values, variance, edge, jnp.sum(values > edge + 3 * unit), alpha, start, distance
    )


def _bulk_median(ratio: float) -> jax.Array:
    low, high = edges(ratio)
    grid = jnp.linspace(low, high, 2001)
    mass = jnp.cumsum(density(grid, ratio))
    return grid[jnp.searchsorted(mass, mass[-1] / 2)]


def _power_law(values: jax.Array) -> tuple[Estimate, jax.Array, jax.Array]:
    """Every eigenvalue as t_min, with at least four in the tail; the best by distance."""
    count = len(values)
    logs = jnp.log(jnp.maximum(values, jnp.finfo(values.dtype).tiny))
    place = jnp.arange(count)

    def tail(index: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        inside = place >= index
        size = count - index
        alpha = 1 + size / jnp.maximum(jnp.sum(jnp.where(inside, logs - logs[index], 0)), 1e-12)
        law = 1 - jnp.exp((1 - alpha) * (logs - logs[index]))
        seen = (place - index + 0.5) / size
        return alpha, jnp.max(jnp.where(inside, jnp.abs(law - seen), 0)), size

    alphas, distances, sizes = jax.vmap(tail)(jnp.arange(count - 3))
    best = jnp.argmin(distances)
    alpha, size = alphas[best], sizes[best]
    return Estimate(alpha, (alpha - 1) / jnp.sqrt(size), size), values[best], distances[best]
