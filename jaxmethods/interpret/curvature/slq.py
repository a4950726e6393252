"""Spectral densities and sums of spectral functions by stochastic Lanczos quadrature.

    tr f(A) ~ (P / r) sum_j sum_i w_ij f(theta_ij),
    phi(t) = (1 / r) sum_j sum_i w_ij N(t; theta_ij, sigma^2)

with nodes theta_ij, eigenvalues of the Lanczos matrix of probe j, and weights w_ij, their
eigenvectors' first entries squared (Ubaru, Chen, Saad 2017; Ghorbani, Krishnan, Xiao 2019). A
probe's sum is exact for polynomials up to degree 2 m - 1, the mean over probes unbiased.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.interpret import trees
from jaxmethods.interpret.curvature.lanczos import recurrence, ritz
from jaxmethods.interpret.curvature.operators import Operator
from jaxmethods.interpret.estimates import mean_of
from jaxmethods.interpret.problem import Estimate
from jaxmethods.numerics.compiled import compiled


class Spectrum(NamedTuple):
    """Quadratures of r probes."""

    nodes: jax.Array
    """[r, m]."""
    weights: jax.Array
    """[r, m], each row a distribution."""
    dimension: jax.Array
    """P, []."""
    residuals: jax.Array
    """[r, m]: an eigenvalue lies within this distance of a node, up to rounding."""


@compiled("steps", "probes", "together")
def spectrum(
    operator: Operator,
    key: jax.Array,
    steps: int = 64,
    probes: int = 8,
    together: int | None = None,
) -> Spectrum:
    """Nodes and weights of the spectrum's quadratures.

    Args:
        operator: symmetric, with P entries a vector.
        key: of the probes.
        steps: m, Lanczos steps of a probe; at most P are done.
        probes: r, random signs, independent.
        together: how many probes are vectorized; each needs m P numbers. None: all.

    Returns:
        Quadratures [r, m]; after a breakdown nodes have weight 0.

    Raises:
        ValueError: fewer than one step or probe.
    """
    if probes < 1:
        raise ValueError(f"probes: expected at least 1, got {probes}")
    product = operator.product()
    length = min(steps, operator.dimension)

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        found = recurrence(product, trees.random_like(key, operator.like), length)
        pairs = ritz(found)
        weights = jnp.where(pairs.there, pairs.vectors[0] ** 2, 0)
        residuals = found.beta[-1] * jnp.abs(pairs.vectors[-1])
        residuals = jnp.where(found.steps < length, 0, residuals)
        return jnp.where(pairs.there, pairs.values, 0), weights, residuals

    keys = jax.random.split(key, probes)
    width = min(together or probes, probes)
    if width == probes > 1:
        nodes, weights, residuals = jax.vmap(one)(keys)
    else:  # matrix products of a width of one are slower than those without it
        nodes, weights, residuals = jax.lax.map(one, keys, batch_size=width if width > 1 else None)
    return Spectrum(nodes, weights, jnp.asarray(operator.dimension, nodes.dtype), residuals)


def spectral_sum(
    spectrum: Spectrum, function: Callable[[jax.Array], jax.Array] = lambda values: values
) -> Estimate:
    """tr f(A), e.g. of `jnp.log`, or of `lambda t: t < 0`, which counts negative eigenvalues.

    Args:
        spectrum: nodes and weights.
        function: entrywise, of nodes.

    Returns:
        The estimate with the standard error between probes. What m steps miss is no part of it.
    """
    values = jnp.where(spectrum.weights > 0, function(spectrum.nodes), 0)
    return mean_of(spectrum.dimension * jnp.sum(spectrum.weights * values, axis=1))


def density(
    spectrum: Spectrum,
    grid: jax.Array,
    relative_variance: float = 1e-5,
    within: bool = False,
) -> Estimate:
    """The smoothed density of eigenvalues on a grid, with its integral 1.

    A narrow Gaussian shows outliers. A bulk needs one as wide as the gaps between nodes, about
    `1e-3` at 64 steps, which blurs the edges of the bulk unless it is kept `within`.

    Args:
        spectrum: nodes and weights.
        grid: eigenvalues [g].
        relative_variance: of the Gaussian around a node, over the squared range of the nodes.
        within: fold what Gaussians have beyond the outermost nodes, where no eigenvalue is, back
            at them (reflection, as for densities of known support). Not for a spectrum of one
            point.

    Returns:
        [g], with standard errors between probes.
    """
    there = spectrum.weights > 0
    low = jnp.min(jnp.where(there, spectrum.nodes, jnp.inf))
    high = jnp.max(jnp.where(there, spectrum.nodes, -jnp.inf))
    # A spectrum of one point has no range: its own size, or that of the grid, is the unit.
    width = jnp.where(high > low, high - low, jnp.maximum(jnp.abs(high), jnp.ptp(grid)))
    sigma = jnp.sqrt(relative_variance) * width
    bumps = jax.scipy.stats.norm.pdf(grid[:, None, None], spectrum.nodes, sigma)  # [g, r, m]
    if within:
        for edge in (low, high):
            bumps += jax.scipy.stats.norm.pdf(grid[:, None, None], 2 * edge - spectrum.nodes, sigma)
        inside = (grid >= low) & (grid <= high)
        bumps = jnp.where(inside[:, None, None], bumps, 0)
    return mean_of(jnp.sum(spectrum.weights * bumps, axis=2).T)
