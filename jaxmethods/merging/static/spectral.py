r"""Merges of singular vectors, for every matrix of the tree.

- TSV-M (Gargiulo et al., CVPR 2025, arXiv 2412.00081): keep the min(out, in)/T strongest singular
  triples of every task vector and make the joint left and right vectors orthonormal.
- Iso-C (Marczak et al. 2025, arXiv 2502.04959): replace the singular values of the summed task
  vectors by their mean.

Leaves that aren't matrices are averaged task vectors. Leading axes beyond the last two (layers)
are matrices of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmethods.merging.static.trees import (
    Tree,
    apply_task_vectors,
    is_merged,
    map_with_names,
    sum_over_tasks,
    task_vectors,
)
from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.linalg import in_turn


@compiled("is_matrix")
def tsv_merge(
    base: Tree,
    stack: Tree,
    coefficient: Any = 1.0,
    is_matrix: Callable[[str, jax.Array], bool] | None = None,
) -> Tree:
    """theta_0 + lambda U_o S V_o^T with U_o, V_o the nearest orthonormal to the joint vectors.

    Args:
        coefficient: lambda.
        is_matrix: (path, one task's leaf) -> whether its last two axes are one linear map; by
            default leaves with two axes.
    """
    return _merge_matrices(base, stack, coefficient, is_matrix, _joint_triples)


@compiled("is_matrix")
def iso_c(
    base: Tree,
    stack: Tree,
    coefficient: Any = 1.0,
    is_matrix: Callable[[str, jax.Array], bool] | None = None,
) -> Tree:
    """theta_0 + lambda mean(s) U V^T with U diag(s) V^T = sum_t tau_t; arguments of `tsv_merge`."""
    return _merge_matrices(base, stack, coefficient, is_matrix, _isotropic)


def _merge_matrices(
    base: Tree,
    stack: Tree,
    coefficient: Any,
    is_matrix: Callable[[str, jax.Array], bool] | None,
    merge: Callable[[jax.Array], jax.Array],
) -> Tree:
    chosen = is_matrix or (lambda path, leaf: leaf.ndim == 2)

    def one(path: str, vectors: jax.Array) -> jax.Array:
        factorized = is_merged(vectors) and vectors.size and chosen(path, vectors[0])
        merged = merge(vectors) if factorized else _mean(vectors)
        return merged[None].astype(vectors.dtype)

    return apply_task_vectors(base, map_with_names(one, task_vectors(base, stack)), coefficient)


def _mean(vectors: jax.Array) -> jax.Array:
    return sum_over_tasks(vectors) / len(vectors)


def _joint_triples(vectors: jax.Array) -> jax.Array:
    """[T, ..., m, n] -> [..., m, n]."""
    tasks = vectors.shape[0]
    left, values, right = in_turn(_svd, vectors)
    rank = max(values.shape[-1] // tasks, 1)
    left = jnp.concatenate(list(left[..., :rank]), axis=-1)  # [..., m, T rank]
    right = jnp.concatenate(list(right[..., :rank, :]), axis=-2)  # [..., T rank, n]
    values = jnp.concatenate(list(values[..., :rank]), axis=-1)
    return (_orthonormal(left) * values[..., None, :]) @ _orthonormal(right)


def _isotropic(vectors: jax.Array) -> jax.Array:
    left, values, right = in_turn(_svd, sum_over_tasks(vectors))
    return jnp.mean(values, axis=-1)[..., None, None] * (left @ right)


def _orthonormal(matrix: jax.Array) -> jax.Array:
    """The nearest matrix with orthonormal columns (or rows): P Q^T of the SVD P S Q^T."""
    left, _, right = in_turn(_svd, matrix)
    return left @ right


def _svd(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    return left, values, right
