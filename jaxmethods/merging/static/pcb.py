r"""PCB: parameters compete within and between tasks.

Du et al., "Parameter Competition Balancing for Model Merging", NeurIPS 2024, arXiv 2410.02396.

    a = |tau| clipped to its 1e-4 and 1 - 1e-4 order statistics,   tau^ = sign(tau) a
    self  = exp(T minmax(a)^2),     cross = tanh(tau * sum_t tau_t),     q = self * cross
    scale = minmax(q clipped to its upper share r)                       per task
    m = sum_t scale_t tau^_t / max(sum_t scale_t, 1e-12),                theta = theta_0 + lambda m

Order statistics, minima and maxima are over all entries of one task.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.merging.static.trees import (
    Tree,
    apply_task_vectors,
    is_merged,
    sum_over_tasks,
    task_vectors,
)
from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.order_statistics import kth_smallest
from jaxmethods.numerics.precision import whole_part

OUTLIERS = 1e-4
"""Share of the magnitudes clipped at either end."""
FLOOR = 1e-12
LARGEST_EXPONENT = 80
"""exp(89) is no float32."""


class Balanced(NamedTuple):
    """What competes and how strongly; both lists of leaves [T, ...]."""

    clipped: Tree
    """tau^."""
    scale: Tree
    """In [0, 1]."""


class Limits(NamedTuple):
    """What a leaf has to know of whole tasks, all [T]."""

    low: jax.Array
    """Order statistics that the magnitudes are clipped to."""
    high: jax.Array
    floor: jax.Array
    """Order statistic that q is clipped to from below, and the largest q."""
    top: jax.Array


@compiled("ratio")
def pcb(base: Tree, stack: Tree, ratio: float = 0.1, coefficient: Any = 1.2) -> Tree:
    """theta_0 + lambda m.

    Args:
        base: theta_0, a tree of parameters.
        stack: experts theta_t, a tree like `base` with a leading axis, [T, ...].
        ratio: r in (0, 1], the share of entries that compete.
        coefficient: lambda, float or [].

    Returns:
        A tree like `base`, in its dtypes.

    Raises:
        ValueError: ratio is out of range or the trees don't match.
    """
    balanced = balance(task_vectors(base, stack), ratio)
    merged = jax.tree.map(merge_balanced, balanced.clipped, balanced.scale)
    return apply_task_vectors(base, merged, coefficient)


def balance(tau: Tree, ratio: float = 0.1) -> Balanced:
    """Clipped task vectors and their scales, trees [T, ...] float32.

    A task whose magnitudes (or q) are all equal has minmax 0 everywhere: it doesn't compete.
    """
    all_leaves, structure = jax.tree.flatten(tau)
    leaves = [leaf for leaf in all_leaves if is_merged(leaf) and leaf.size]
    if not leaves:
        return Balanced(tau, tau)
    ranks = order_ranks(sum(leaf[0].size for leaf in leaves), ratio)
    magnitudes = [jnp.abs(leaf) for leaf in leaves]
    low, high = (kth_smallest(magnitudes, rank) for rank in ranks.magnitude)
    competing = [competitiveness(leaf, low, high) for leaf in leaves]
    floor = kth_smallest(competing, ranks.competitiveness)
    top = jnp.max(jnp.stack([jnp.max(q, axis=tuple(range(1, q.ndim))) for q in competing]), axis=0)
    limits = Limits(low, high, floor, top)
    balanced = [
        balance_leaf(leaf, limits) if is_merged(leaf) and leaf.size else Balanced(leaf, leaf)
        for leaf in all_leaves
    ]
    return Balanced(
        jax.tree.unflatten(structure, [leaf.clipped for leaf in balanced]),
        jax.tree.unflatten(structure, [leaf.scale for leaf in balanced]),
    )


class Ranks(NamedTuple):
    """1-based ranks of the order statistics."""

    magnitude: tuple[int, int]
    competitiveness: int


def order_ranks(size: int, ratio: float) -> Ranks:
    """The ranks for `size` entries. Raises `ValueError` where the ratio is out of range."""
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio: expected a share in (0, 1], got {ratio}")
    high = max(whole_part(1 - OUTLIERS, size) - 1, 0)
    floor = min(whole_part(1 - ratio, size), size - 1)
    return Ranks((whole_part(OUTLIERS, size) + 1, high + 1), floor + 1)


def competitiveness(vectors: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """q of one leaf [T, ...]; the limits [T] are the extremes of the clipped magnitudes."""
    magnitude = jnp.clip(jnp.abs(vectors), _over(low, vectors), _over(high, vectors))
    relative = _minmax(magnitude, low, high)
    cross = jnp.tanh(vectors * sum_over_tasks(vectors))
    exponent = vectors.shape[0] * jnp.square(relative)
    if vectors.shape[0] > LARGEST_EXPONENT:  # a factor that all share doesn't change the scale
        exponent = exponent - (vectors.shape[0] - LARGEST_EXPONENT)
    return jnp.exp(exponent) * cross


def balance_leaf(vectors: jax.Array, limits: Limits) -> Balanced:
    """`balance` of one leaf [T, ...]."""
    low, high, floor, top = limits
    magnitude = jnp.clip(jnp.abs(vectors), _over(low, vectors), _over(high, vectors))
    q = competitiveness(vectors, low, high)
    scale = _minmax(jnp.maximum(q, _over(floor, q)), floor, top)
    return Balanced(jnp.sign(vectors) * magnitude, scale)


def merge_balanced(clipped: jax.Array, scale: jax.Array) -> jax.Array:
    """m of one leaf, [1, ...]."""
    total = jnp.maximum(sum_over_tasks(scale), FLOOR)
    return sum_over_tasks(clipped * scale / total)[None]


def _minmax(values: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """(x - min) / (max - min) with a task's extremes [T], 0 where that is 0 / 0."""
    span = jnp.where(high > low, high - low, 1)
    return (values - _over(low, values)) / _over(span, values)


def _over(values: jax.Array, leaf: jax.Array) -> jax.Array:
    """[T] made to broadcast over [T, ...]."""
    return values.reshape(-1, *(1,) * (leaf.ndim - 1))
