r"""Magnitude pruning: every tensor loses its smallest entries, up to a quantile (E-WEMoE).

    tau' = tau where |tau| > q_ratio(|tau|), else 0

Shen et al. 2024, arXiv 2410.21804.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmethods.merging.static.trees import Tree, is_merged
from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.order_statistics import kth_smallest
from jaxmethods.numerics.precision import whole_part


@compiled("ratio", "stacked")
def magnitude_prune(tree: Tree, ratio: float, stacked: int = 1) -> Tree:
    """Zeroes the magnitudes of every tensor up to its `ratio`-quantile (E-WEMoE).

    Entries above the linearly interpolated quantile q of |tau| stay: |tau| > q. With n entries,
    that are those above the floor(ratio (n - 1)) + 1 smallest one, so ratio 0 still drops the
    smallest and 1 drops all.

    Args:
        tree: task vectors, or any tree of tensors with `stacked` leading axes.
        ratio: in [0, 1].
        stacked: how many leading axes index tensors of their own (1: experts; 2: layers too).

    Returns:
        A tree like it with zeros where entries are dropped.

    Raises:
        ValueError: ratio is out of range.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio: expected a share in [0, 1], got {ratio}")

    def prune(leaf: jax.Array) -> jax.Array:
        if not is_merged(leaf) or not leaf.size:
            return leaf
        tensors = leaf.reshape(-1, *leaf.shape[stacked:])  # [T or T N, ...]
        rank = whole_part(ratio, tensors[0].size - 1) + 1
        limit = kth_smallest([jnp.abs(tensors)], rank)
        keep = jnp.abs(tensors) > limit.reshape(-1, *(1,) * (tensors.ndim - 1))
        return jnp.where(keep, tensors, 0).reshape(leaf.shape)

    return jax.tree.map(prune, tree)
