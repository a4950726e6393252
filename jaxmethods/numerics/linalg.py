"""Factorizations of many matrices that finish on every device.

XLA's CPU runtime runs independent operations of a program side by side on one pool of threads, and
a LAPACK call with a leading axis waits inside that pool for more of its threads: two such calls on
two cores can wait for each other for ever. A call for a single matrix waits for nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def in_turn(function: Callable[..., Any], *matrices: jax.Array) -> Any:
    """`function` of each matrix: one after the other on CPU, all at once elsewhere.

    Args:
        function: of as many matrices as are given, batched over leading axes, as those of
            `jax.numpy.linalg` are.
        matrices: [..., m, n] with the same leading axes.

    Returns:
        What `function(*matrices)` returns.
    """
    leading = matrices[0].shape[:-2]

    def one_by_one(*matrices: jax.Array) -> Any:
        flat = tuple(matrix.reshape(-1, *matrix.shape[-2:]) for matrix in matrices)
        results = jax.lax.map(lambda own: function(*own), flat)
        return jax.tree.map(lambda leaf: leaf.reshape(*leading, *leaf.shape[1:]), results)

    if not leading:
        return function(*matrices)
    return jax.lax.platform_dependent(*matrices, cpu=one_by_one, default=function)


def thin_svd(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """U [..., m, k], s [..., k] and V^T [..., k, n] of matrices [..., m, n], k = min(m, n)."""
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    return left, values, right
