r"""RegMean: the linear layer that is closest to all experts on their own inputs.

Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models", ICLR 2023,
arXiv 2212.09849.

    W = argmin sum_t |X_t W^T - X_t W_t^T|^2,
    W^T = (sum_t G_t)^{-1} sum_t G_t W_t^T,       G_t = X_t^T X_t

Inputs may not span: a feature may be 0 in all of them, or there may be fewer rows than features.
Then many W are the closest, and what the inputs leave open is that of the experts' average.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from jaxmethods.merging.static.arithmetic import average
from jaxmethods.merging.static.trees import (
    Tree,
    compute_dtype,
    leaves_with_names,
    map_with_names,
    sum_over_tasks,
)
from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.linalg import in_turn


def gram(inputs: jax.Array) -> jax.Array:
    """X^T X / rows of inputs [..., rows, in] -> [..., in, in], float32 or what is wider.

    Args:
        inputs: [..., rows, in], what a linear map is given.

    Returns:
        [..., in, in], float32 or what is wider.

    Raises:
        ValueError: there are no rows.
    """
    if not inputs.shape[-2]:
        raise ValueError(f"inputs: expected at least one row, got shape {inputs.shape}")
    x = inputs.astype(compute_dtype(inputs))
    return (
        jnp.einsum("...ni,...nj->...ij", x, x, precision="highest") / x.shape[-2]
    )  # [..., in, in]


@compiled("layout")
def regmean(
    stack: Tree,
    grams: Mapping[str, jax.Array],
    *,
    alpha: float = 1.0,
    jitter: float = 0.0,
    layout: Literal["out_in", "in_out"] = "out_in",
) -> Tree:
    """Solves for every leaf that has Gram matrices and averages the others.

    Args:
        stack: experts [T, ...].
        grams: path of a linear weight -> [T, in, in]; with layers, [T, N, in, in] for a weight
            [T, N, out, in]. Comparable between tasks: divided by the number of rows.
        alpha: off-diagonal entries are multiplied by it; 0.6 forgives inaccurate Gram matrices.
        jitter: share of the mean diagonal that is added to the diagonal, where inputs don't span.
        layout: of the weights: y = x W^T + b ("out_in", PyTorch) or y = x W ("in_out", Flax).

    Returns:
        A tree like one expert, in the stack's dtypes.

    Raises:
        ValueError: a path is not in the stack, or a shape doesn't fit.
    """
    known = {path for path, _ in leaves_with_names(stack)}
    unknown = sorted(grams.keys() - known)
    if unknown:
        raise ValueError(f"grams: the experts have no leaf {unknown[0]!r}")

    def merge(path: str, experts: jax.Array) -> jax.Array:
        if path not in grams:
            return average(experts)
        weights = experts.astype(compute_dtype(experts, grams[path]))
        if layout == "out_in":
            weights = weights.mT
        expected = (*weights.shape[:-2], weights.shape[-2], weights.shape[-2])
        if grams[path].shape != expected:
            raise ValueError(f"grams {path!r}: expected shape {expected}, got {grams[path].shape}")
        if not experts.size:
            return experts[0]
        merged = _solve(grams[path].astype(weights.dtype), weights, alpha, jitter)
        return (merged.mT if layout == "out_in" else merged).astype(experts.dtype)

    return map_with_names(merge, stack)


def _solve(grams: jax.Array, weights: jax.Array, alpha: float, jitter: float) -> jax.Array:
    """(sum G)^-1 sum G W of grams [T, ..., in, in] and weights [T, ..., in, out]."""
    unit = jnp.eye(grams.shape[-1], dtype=grams.dtype)
    grams = grams * (alpha + (1 - alpha) * unit)
    total = jnp.sum(grams, axis=0)
    mean_diagonal = jnp.trace(total, axis1=-2, axis2=-1) / total.shape[-1]
    total = total + jitter * mean_diagonal[..., None, None] * unit
    right = jnp.sum(jnp.matmul(grams, weights, precision="highest"), axis=0)
    return in_turn(_solve_one, total, right, sum_over_tasks(weights) / len(weights))


def _solve_one(total: jax.Array, right: jax.Array, mean: jax.Array) -> jax.Array:
    """W with total W = right, closest to the mean where there are several; all [..., in, ...]."""
    diagonal = jnp.diagonal(total, axis1=-2, axis2=-1)
    dead = diagonal <= 0  # such rows and columns are 0
    size = jnp.sqrt(jnp.where(dead, 1, diagonal))
    unit = jnp.eye(total.shape[-1], dtype=total.dtype)
    total = total + jnp.where(dead, 1, 0).astype(total.dtype)[..., None] * unit
    right = jnp.where(dead[..., None], mean, right)
    # Features of unit length: then small eigenvalues are dependent features, not small ones.
    scaled = total / (size[..., :, None] * size[..., None, :])
    least = jnp.asarray(jnp.finfo(total.dtype).eps * total.shape[-1], total.dtype)
    spans = jnp.all(jnp.isfinite(jnp.linalg.cholesky(scaled - least * unit)))

    def closest() -> jax.Array:
        values, vectors = jnp.linalg.eigh(scaled)
        kept = values > least
        inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
        product = partial(jnp.matmul, precision="highest")
        error = (right - product(total, mean)) / size[..., None]
        change = product(vectors, inverse[..., None] * product(vectors.mT, error))
        return mean + change / size[..., None]

    return jax.lax.cond(spans, lambda: jnp.linalg.solve(total, right), closest)
