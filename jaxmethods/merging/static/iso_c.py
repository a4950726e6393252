r"""Iso-C: the summed task vectors with one singular value, the mean of theirs.

    theta_0 + lambda mean(s) U V^T,    U diag(s) V^T = sum_t tau_t

Marczak et al. 2025, arXiv 2502.04959. Leaves that aren't matrices are averaged task vectors.
Leading axes beyond the last two (layers) are matrices of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmethods.merging.static.trees import Tree, merge_matrices, sum_over_tasks
from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.linalg import in_turn, thin_svd


@compiled("is_matrix")
def iso_c(
    base: Tree,
    stack: Tree,
    coefficient: Any = 1.0,
    is_matrix: Callable[[str, jax.Array], bool] | None = None,
) -> Tree:
    """theta_0 + lambda mean(s) U V^T with U diag(s) V^T = sum_t tau_t; arguments of `tsv_merge`.

    Args:
        base: theta_0, a tree of parameters.
        stack: experts theta_t, a tree like `base` with a leading axis, [T, ...].
        coefficient: lambda, float or [].
        is_matrix: see `tsv.tsv_merge`.

    Returns:
        A tree like `base`, in its dtypes.
    """
    return merge_matrices(base, stack, coefficient, is_matrix, _isotropic)


def _isotropic(vectors: jax.Array) -> jax.Array:
    left, values, right = in_turn(thin_svd, sum_over_tasks(vectors))
    return jnp.mean(values, axis=-1)[..., None, None] * (left @ right)
