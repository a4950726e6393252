r"""Model Breadcrumbs: task vectors without their outliers and without their small entries.

    tau' = tau where tau is neither among the floor(gamma n) largest magnitudes of its tensor nor
    among the small ones that are left out down to floor(rho n)

Davari and Belilovsky 2023, arXiv 2312.06795. Stacked task vectors [T, ...] go in and come out.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmethods.merging.static.ties import largest, share
from jaxmethods.merging.static.trees import Tree, is_merged
from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.precision import whole_part


@compiled("density", "gamma")
def breadcrumbs(tau: Tree, density: float = 0.9, gamma: float = 0.01) -> Tree:
    """Drops the floor(gamma n) largest of every leaf, then the smallest down to floor(rho n).

    Where both can't be had, fewer of the largest are dropped.

    Args:
        tau: task vectors [T, ...].
        density: rho in [0, 1], the share of entries kept.
        gamma: share of the largest entries that are dropped.

    Returns:
        A tree like `tau` with zeros where entries are dropped.

    Raises:
        ValueError: density or gamma is out of range.
    """
    density = share(density)
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma: expected a share in [0, 1], got {gamma}")

    def keep(vectors: jax.Array) -> jax.Array:
        if not is_merged(vectors):
            return vectors
        size = vectors[0].size
        left = whole_part(density, size)
        top = min(whole_part(gamma, size), size - left)
        middle = largest(vectors, left + top) & ~largest(vectors, top)
        return jnp.where(middle, vectors, 0)

    return jax.tree.map(keep, tau)
