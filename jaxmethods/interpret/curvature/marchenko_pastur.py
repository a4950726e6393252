"""The Marchenko-Pastur law: eigenvalues of X^T X / n for independent entries of X [n, d].

    p(t) = sqrt((t_+ - t)(t - t_-)) / (2 pi s^2 r t),   t_+- = s^2 (1 +- sqrt r)^2,   r = d / n

(Marchenko, Pastur 1967), with a point mass 1 - 1/r at zero for r > 1. What lies beyond t_+ is a
spike: a direction that noise doesn't explain.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmethods.numerics.precision import wide


def edges(
    ratio: jax.Array | float, variance: jax.Array | float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """The bulk's smallest and largest eigenvalue."""
    root = jnp.sqrt(ratio)
    return variance * (1 - root) ** 2, variance * (1 + root) ** 2


def density(
    values: jax.Array, ratio: jax.Array | float, variance: jax.Array | float = 1.0
) -> jax.Array:
    """The density of the bulk; 0 outside it.

    Args:
        values: eigenvalues [...].
        ratio: d / n.
        variance: of an entry of X.

    Returns:
        [...]; its integral is min(1, 1 / ratio).
    """
    values = wide(values)
    ratio = jnp.asarray(ratio, values.dtype)
    low, high = edges(ratio, variance)
    inside = (values > low) & (values < high)
    safe = jnp.where(inside, values, (low + high) / 2)
    bulk = jnp.sqrt(jnp.maximum((high - safe) * (safe - low), 0))
    return jnp.where(inside, bulk / (2 * jnp.pi * variance * ratio * safe), 0)
