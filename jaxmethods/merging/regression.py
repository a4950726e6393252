r"""RegMean: the linear layer that is closest to all experts on their own inputs.

Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models", ICLR 2023,
arXiv 2212.09849.

    W = argmin sum_t |X_t W^T - X_t W_t^T|^2,
    W^T = (sum_t G_t)^{-1} sum_t G_t W_t^T,       G_t = X_t^T X_t
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from jaxmethods.linalg import in_turn
from jaxmethods.merging.arithmetic import average
from jaxmethods.merging.trees import Tree, compute_dtype, leaves_with_names, map_with_names


def gram(inputs: jax.Array) -> jax.Array:
    """X^T X / rows of inputs [..., rows, in] -> [..., in, in] float32."""
    x = inputs.astype(compute_dtype(inputs))
    return jnp.einsum("...ni,...nj->...ij", x, x, precision="highest") / x.shape[-2]


@partial(jax.jit, static_argnames=("layout",))
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
        jitter: add so much of the mean diagonal to the diagonal, where inputs don't span.
        layout: of the weights: y = x W^T + b ("out_in", PyTorch) or y = x W ("in_out", Flax).

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
        weights = experts.astype(compute_dtype(experts))
        if layout == "out_in":
            weights = weights.mT
        expected = (*weights.shape[:-2], weights.shape[-2], weights.shape[-2])
        if grams[path].shape != expected:
            raise ValueError(f"grams {path!r}: expected shape {expected}, got {grams[path].shape}")
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
    return in_turn(jnp.linalg.solve, total, right)
