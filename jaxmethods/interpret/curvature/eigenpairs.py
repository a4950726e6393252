"""Extreme eigenpairs of a curvature operator, each with a bound of its error.

    |lambda - theta_i| <= |A y_i - theta_i y_i| = beta_m |s_mi|

for the Ritz pair (theta_i, y_i = V_m s_i) of m Lanczos steps (Parlett, "The Symmetric Eigenvalue
Problem", chapter 13). Eigenvalues are the largest or smallest algebraically, not in magnitude.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.interpret import trees
from jaxmethods.interpret.curvature.lanczos import lanczos, ritz
from jaxmethods.interpret.curvature.operators import Operator
from jaxmethods.interpret.trees import Vector
from jaxmethods.numerics.compiled import compiled


class Eigenpairs(NamedTuple):
    """k eigenpairs, the outermost first."""

    values: jax.Array
    """[k]; NaN where the operator has no further ones."""
    vectors: Vector
    """Stacked unit vectors [k, ...]."""
    residuals: jax.Array
    """[k]: an eigenvalue lies within this distance, up to rounding."""


@compiled("k", "steps", "which")
def eigenpairs(
    operator: Operator, key: jax.Array, k: int = 5, steps: int = 64, which: str = "largest"
) -> Eigenpairs:
    """The k largest or smallest eigenvalues, or k of both ends, with vectors and residuals.

    Args:
        operator: symmetric.
        key: of the start vector and of restarts after a breakdown.
        k: how many of an end.
        steps: Lanczos steps, at least 2 k + 20 to be safe; at most P are done.
        which: "largest", "smallest", or "both": k largest, then k smallest.

    Returns:
        [k], or [2 k] for "both"; residuals say how well they converged.

    Raises:
        ValueError: an unknown end, or fewer steps than k.
    """
    if which not in ("largest", "smallest", "both"):
        raise ValueError(f'which: expected "largest", "smallest" or "both", got {which!r}')
    if not 1 <= k <= steps:
        raise ValueError(f"k: expected 1 to steps ({steps}), got {k}")
    length = min(steps, operator.dimension)
    start = trees.random_like(jax.random.fold_in(key, 0), operator.like)
    found = lanczos(operator, start, length, jax.random.fold_in(key, 1))
    pairs = ritz(found)
    residuals = found.beta[-1] * jnp.abs(pairs.vectors[-1])
    residuals = jnp.where(found.steps < length, 0, residuals)

    def take(places: jax.Array) -> Eigenpairs:
        there = (places >= 0) & (places < found.steps)
        places = jnp.clip(places, 0, length - 1)
        vectors = trees.combine(jnp.where(there[:, None], pairs.vectors.T[places], 0), found.basis)
        nan = lambda values: jnp.where(there, values[places], jnp.nan)  # noqa: E731
        return Eigenpairs(nan(pairs.values), vectors, nan(residuals))

    largest, smallest = found.steps - 1 - jnp.arange(k), jnp.arange(k)
    if which == "both":
        return take(jnp.concatenate([largest, smallest]))
    return take(largest if which == "largest" else smallest)
