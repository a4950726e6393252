r"""DELLA: entries of task vectors are kept with probabilities that grow with their magnitude.

    p_r = (rho - epsilon) + 2 epsilon (r - 1) / (n - 1)

for the entry of rank r in its row of n. Deep et al. 2024, arXiv 2406.11617. Stacked task vectors
[T, ...] go in and come out.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmethods.merging.static.ties import share
from jaxmethods.merging.static.trees import Tree, compute_dtype, is_merged, leaf_key, map_with_names
from jaxmethods.numerics.compiled import compiled


def della(
    key: jax.Array, tau: Tree, density: float = 0.5, epsilon: float = 0.1, rescale: bool = True
) -> Tree:
    """Keeps the entry of rank r in its row (1 = smallest of n) with probability
    (rho - epsilon) + 2 epsilon (r - 1) / (n - 1), then restores each leaf's L1 norm.

    Masks depend on the key and the leaf's path, as those of `dare`.

    Args:
        key: typed random key [].
        tau: task vectors [T, ...].
        density: rho, the mean probability to be kept.
        epsilon: half of the range of probabilities.
        rescale: restore each leaf's L1 norm.

    Returns:
        A tree like `tau` with zeros where entries are dropped.

    Raises:
        ValueError: a probability would leave [0, 1].
    """
    density = share(density)
    check_probabilities(density, epsilon)

    def draw(path: str, vectors: jax.Array) -> jax.Array:
        if not is_merged(vectors):
            return vectors
        return della_leaf(leaf_key(key, path), vectors, density, epsilon, rescale)

    return map_with_names(draw, tau)


def check_probabilities(density: float, epsilon: float) -> None:
    """Raises `ValueError` where DELLA would keep an entry with a probability outside [0, 1]."""
    if not epsilon <= density <= 1 - epsilon:
        raise ValueError(
            f"epsilon: expected density ± epsilon in [0, 1], got {density} ± {epsilon}"
        )


@compiled("rescale")
def della_leaf(
    key: jax.Array, vectors: jax.Array, density: Any, epsilon: Any, rescale: bool = True
) -> jax.Array:
    """`della` of one leaf [T, ...].

    Args:
        key: [] typed random key.
        vectors: [T, ...] task vectors of the leaf.
        density: rho, the share that is kept on average; may be traced.
        epsilon: half the range of the probabilities; may be traced.
        rescale: multiply what is kept so that each task's sum of magnitudes stays; static.

    Returns:
        [T, ...] in the dtype of `vectors`.
    """
    rows = vectors if vectors.ndim > 1 else vectors[:, None]  # a number is a row of its own
    row = rows.shape[-1]
    rank = jnp.argsort(jnp.argsort(jnp.abs(rows), axis=-1), axis=-1).reshape(vectors.shape)
    probability = density - epsilon + 2 * epsilon * rank.astype(jnp.float32) / max(row - 1, 1)
    if row == 1:  # neither small nor large
        probability = density
    uniform = jax.random.uniform(key, vectors.shape, jnp.float32)
    kept = jnp.where(uniform < jnp.asarray(probability, jnp.float32), vectors, 0)
    if not rescale:
        return kept
    axes, dtype = tuple(range(1, vectors.ndim)), compute_dtype(vectors)
    before = jnp.sum(jnp.abs(vectors), axes, keepdims=True, dtype=dtype)
    after = jnp.sum(jnp.abs(kept), axes, keepdims=True, dtype=dtype)
    factor = jnp.where(after > 0, before / jnp.where(after > 0, after, 1), 1)
    return (kept.astype(dtype) * factor).astype(vectors.dtype)
