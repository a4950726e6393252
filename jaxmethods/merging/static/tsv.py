r"""TSV-M: the strongest singular triples of all task vectors, made orthonormal together.

    theta_0 + lambda U_o S V_o^T

where every task vector of an m x n matrix gives its min(m, n)/T strongest singular triples, S holds
their values, and U_o, V_o are the orthonormal matrices nearest to the joint left and right vectors.
Gargiulo et al., CVPR 2025, arXiv 2412.00081. Leaves that aren't matrices are averaged task vectors.
Leading axes beyond the last two (layers) are matrices of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmethods.merging.static.trees import Tree, merge_matrices
from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.linalg import in_turn, thin_svd


@compiled("is_matrix")
def tsv_merge(
    base: Tree,
    stack: Tree,
    coefficient: Any = 1.0,
    is_matrix: Callable[[str, jax.Array], bool] | None = None,
) -> Tree:
    """theta_0 + lambda U_o S V_o^T with U_o, V_o the nearest orthonormal to the joint vectors.

    Args:
        base: theta_0, a tree of parameters.
        stack: experts theta_t, a tree like `base` with a leading axis, [T, ...].
        coefficient: lambda.
        is_matrix: (path, one task's leaf) -> whether its last two axes are one linear map; by
            default leaves with two axes.

    Returns:
        A tree like `base`, in its dtypes.
    """
    return merge_matrices(base, stack, coefficient, is_matrix, _joint_triples)


def _joint_triples(vectors: jax.Array) -> jax.Array:
    """[T, ..., m, n] -> [..., m, n]."""
    tasks = vectors.shape[0]
    left, values, right = in_turn(thin_svd, vectors)
    rank = max(values.shape[-1] // tasks, 1)
    left = jnp.concatenate(list(left[..., :rank]), axis=-1)  # [..., m, T rank]
    right = jnp.concatenate(list(right[..., :rank, :]), axis=-2)  # [..., T rank, n]
    values = jnp.concatenate(list(values[..., :rank]), axis=-1)
    return (_orthonormal(left) * values[..., None, :]) @ _orthonormal(right)


def _orthonormal(matrix: jax.Array) -> jax.Array:
    """The nearest matrix with orthonormal columns (or rows): P Q^T of the SVD P S Q^T."""
    left, _, right = in_turn(thin_svd, matrix)
    return left @ right
