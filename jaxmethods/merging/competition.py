r"""PCB: parameters compete within and between tasks.

Du et al., "Parameter Competition Balancing for Model Merging", NeurIPS 2024, arXiv 2410.02396.

    a = |tau| clipped to its 1e-4 and 1 - 1e-4 order statistics,   tau^ = sign(tau) a
    self  = exp(T minmax(a)^2),     cross = tanh(tau * sum_t tau_t),     q = self * cross
    scale = minmax(q clipped to its upper share r)                       per task
    m = sum_t scale_t tau^_t / max(sum_t scale_t, 1e-12),                theta = theta_0 + lambda m

Order statistics, minima and maxima are over all entries of one task.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.merging.order_statistics import kth_smallest
from jaxmethods.merging.trees import Tree, apply_task_vectors, is_merged, task_vectors

OUTLIERS = 1e-4
"""Share of the magnitudes clipped at either end."""
FLOOR = 1e-12


class Balanced(NamedTuple):
    """What competes and how strongly; both lists of leaves [T, ...]."""

    clipped: Tree
    """tau^."""
    scale: Tree
    """In [0, 1]."""


@partial(jax.jit, static_argnames=("ratio",))
def pcb(base: Tree, stack: Tree, ratio: float = 0.1, coefficient: Any = 1.2) -> Tree:
    """theta_0 + lambda m.

    Args:
        ratio: r in (0, 1], the share of entries that compete.
        coefficient: lambda, float or [].

    Raises:
        ValueError: ratio is out of range or the trees don't match.
    """
    balanced = balance(task_vectors(base, stack), ratio)

    def merge(clipped: jax.Array, scale: jax.Array) -> jax.Array:
        total = jnp.maximum(jnp.sum(scale, axis=0, keepdims=True), FLOOR)
        return jnp.sum(clipped * scale / total, axis=0, keepdims=True)

    merged = jax.tree.map(merge, balanced.clipped, balanced.scale)
    return apply_task_vectors(base, merged, coefficient)


def balance(tau: Tree, ratio: float = 0.1) -> Balanced:
    """Clipped task vectors and their scales, trees [T, ...] float32.

    A task whose magnitudes (or q) are all equal has minmax 0 everywhere: it doesn't compete.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio: expected a share in (0, 1], got {ratio}")
    all_leaves, structure = jax.tree.flatten(tau)
    leaves = [leaf for leaf in all_leaves if is_merged(leaf)]
    tasks, size = leaves[0].shape[0], sum(leaf[0].size for leaf in leaves)
    magnitudes = [jnp.abs(leaf) for leaf in leaves]
    low = _order_statistic(magnitudes, int(OUTLIERS * size))
    high = _order_statistic(magnitudes, int(size * (1 - OUTLIERS) - 1))
    magnitudes = [jnp.clip(a, _over(low, a), _over(high, a)) for a in magnitudes]
    competing = [
        jnp.exp(tasks * jnp.square(relative)) * jnp.tanh(leaf * jnp.sum(leaf, axis=0))
        for relative, leaf in zip(_minmax(magnitudes), leaves, strict=True)
    ]
    floor = _order_statistic(competing, min(int(size * (1 - ratio)), size - 1))
    scales = iter(_minmax([jnp.maximum(q, _over(floor, q)) for q in competing]))
    clipped = iter([jnp.sign(leaf) * a for leaf, a in zip(leaves, magnitudes, strict=True)])

    def place(values: Any) -> Tree:
        placed = [next(values) if is_merged(leaf) else leaf for leaf in all_leaves]
        return jax.tree.unflatten(structure, placed)

    return Balanced(place(clipped), place(scales))


def _order_statistic(leaves: list[jax.Array], index: int) -> jax.Array:
    """[T]: the 0-based ascending order statistic over all leaves."""
    return kth_smallest(leaves, max(index, 0) + 1)


def _minmax(leaves: list[jax.Array]) -> list[jax.Array]:
    """(x - min) / (max - min) over all leaves of a task, 0 where that is 0 / 0."""

    def extreme(function: Any) -> jax.Array:
        parts = [function(leaf, axis=tuple(range(1, leaf.ndim))) for leaf in leaves]
        return function(jnp.stack(parts), axis=0)

    low, high = extreme(jnp.min), extreme(jnp.max)
    span = jnp.where(high > low, high - low, 1)
    return [(leaf - _over(low, leaf)) / _over(span, leaf) for leaf in leaves]


def _over(values: jax.Array, leaf: jax.Array) -> jax.Array:
    """[T] made to broadcast over [T, ...]."""
    return values.reshape(-1, *(1,) * (leaf.ndim - 1))
