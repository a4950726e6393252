r"""Task vectors with fewer entries: DARE, Model Breadcrumbs, DELLA, magnitude pruning.

All take stacked task vectors [T, ...] (`trees.task_vectors`) and return such; merge the result with
`trees.apply_task_vectors`; `dare_ties` combines DARE with TIES.

- DARE (Yu et al. 2024, arXiv 2311.03099): tau' = m tau / (1 - p), m ~ Bernoulli(1 - p).
- Breadcrumbs (Davari and Belilovsky 2023, arXiv 2312.06795): drop outliers and small entries.
- DELLA (Deep et al. 2024, arXiv 2406.11617): keep probabilities that grow with magnitude.
- E-WEMoE (arXiv 2410.21804): drop every tensor's magnitudes up to a quantile.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmethods.merging.static.order_statistics import kth_smallest
from jaxmethods.merging.static.ties import Merge, Scope, count, largest, merge_elected, share
from jaxmethods.merging.static.trees import (
    Coefficients,
    Tree,
    check_stack,
    compute_dtype,
    is_concrete,
    is_merged,
    map_with_names,
)
from jaxmethods.numerics.compiled import compiled


def dare(
    key: jax.Array,
    tau: Tree,
    p: Any = 0.5,
    rescale: bool = True,
    where: Callable[[str, jax.Array], bool] | None = None,
) -> Tree:
    """Drops every entry with probability p and makes up for it by 1 / (1 - p).

    The mask depends on the key and the leaf's path alone: the same on any device, in a larger tree
    and for one tensor by itself; experts added at the end leave those of the others as they are.

    Args:
        tau: task vectors [T, ...].
        p: drop rate, float or []; 1 only without `rescale`.
        where: (path, one task's leaf) -> whether to drop from this leaf; `matrices` for linear
            weights alone.

    Raises:
        ValueError: p is not in [0, 1], or 1 with `rescale`.
    """
    return dare_with_mask(tau, dare_mask(key, tau, p, where), p, rescale, where)


def dare_mask(
    key: jax.Array,
    tau: Tree,
    p: Any = 0.5,
    where: Callable[[str, jax.Array], bool] | None = None,
) -> Tree:
    """True where an entry is kept; a tree [T, ...] of bool."""

    def draw(path: str, vectors: jax.Array) -> jax.Array:
        if where is not None and not where(path, vectors[0]):
            return jnp.ones(vectors.shape, bool)
        return leaf_mask(leaf_key(key, path), vectors.shape, p)

    return map_with_names(draw, tau)


def leaf_key(key: jax.Array, path: str) -> jax.Array:
    """The key of a leaf's masks, the same for "a/b" of a nested tree and "a.b" of a checkpoint."""
    return jax.random.fold_in(key, zlib.crc32(path.replace("/", ".").encode()))


@compiled("shape")
def leaf_mask(key: jax.Array, shape: tuple[int, ...], p: Any) -> jax.Array:
    """True with probability 1 - p."""
    # Of one type whatever the default is, so that masks don't depend on jax_enable_x64.
    return jax.random.uniform(key, shape, jnp.float32) >= jnp.asarray(p, jnp.float32)


def dare_with_mask(
    tau: Tree,
    mask: Tree,
    p: Any,
    rescale: bool = True,
    where: Callable[[str, jax.Array], bool] | None = None,
) -> Tree:
    """m tau / (1 - p) with given masks (True: keep)."""
    _check_rate(p, rescale)

    def drop(path: str, vectors: jax.Array, keep: jax.Array) -> jax.Array:
        if not is_merged(vectors) or (where is not None and not where(path, vectors[0])):
            return vectors
        return drop_entries(vectors, keep, p if rescale else 0)

    return map_with_names(drop, tau, mask)


@compiled()
def drop_entries(vectors: jax.Array, keep: jax.Array, p: Any) -> jax.Array:
    """m tau / (1 - p) of one leaf, in its dtype; zeros where p is 1."""
    dtype = compute_dtype(vectors)
    kept = 1 - jnp.asarray(p, dtype)
    rescaled = jnp.where(keep, vectors.astype(dtype), 0) / jnp.where(kept > 0, kept, 1)
    return rescaled.astype(vectors.dtype)


def _check_rate(p: Any, rescale: bool) -> None:
    if not is_concrete(p):
        return
    if not 0 <= float(p) <= 1:
        raise ValueError(f"p: expected a drop rate in [0, 1], got {p}")
    if rescale and float(p) == 1:
        raise ValueError("p: 1 drops everything, which cannot be rescaled; got 1")


def dare_ties(
    key: jax.Array,
    base: Tree,
    stack: Tree,
    p: Any = 0.5,
    *,
    density: float = 1.0,
    coefficients: Coefficients = 0.3,
    merge: Merge = "sum",
    scope: Scope = "global",
) -> Tree:
    """TIES of the experts that DARE leaves: theta_0 + lambda m of rescaled task vectors.

    Args:
        p: drop rate in [0, 1).
        density: share of the entries that TIES then keeps; dropped ones are its smallest.

    Raises:
        ValueError: p is not in [0, 1), or the trees don't match.
    """
    check_stack(base, stack)
    _check_rate(p, rescale=True)
    masks = dare_mask(key, stack, p)
    return merge_elected(base, stack, masks, p, density, coefficients, merge, scope)


def matrices(path: str, leaf: jax.Array) -> bool:
    """For `where`: linear weights, not biases and norms."""
    del path
    return leaf.ndim >= 2


@compiled("density", "gamma")
def breadcrumbs(tau: Tree, density: float = 0.9, gamma: float = 0.01) -> Tree:
    """Drops the floor(gamma n) largest of every leaf, then the smallest down to floor(rho n).

    Where both can't be had, fewer of the largest are dropped.

    Raises:
        ValueError: density or gamma is out of range.
    """
    density = share(density)
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma: expected a share in [0, 1], got {gamma}")

    def keep(vectors: jax.Array) -> jax.Array:
        if not is_merged(vectors):
            return vectors
        size = vectors[0].size
        left = count(density, size)
        top = min(count(gamma, size), size - left)
        middle = largest(vectors, left + top) & ~largest(vectors, top)
        return jnp.where(middle, vectors, 0)

    return jax.tree.map(keep, tau)


def della(
    key: jax.Array, tau: Tree, density: float = 0.5, epsilon: float = 0.1, rescale: bool = True
) -> Tree:
    """Keeps the entry of rank r in its row (1 = smallest of n) with probability
    (rho - epsilon) + 2 epsilon (r - 1) / (n - 1), then restores each leaf's L1 norm.

    Masks depend on the key and the leaf's path, as those of `dare`.

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
    """`della` of one leaf [T, ...]."""
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


@compiled("ratio", "stacked")
def magnitude_prune(tree: Tree, ratio: float, stacked: int = 1) -> Tree:
    """Zeroes the magnitudes of every tensor up to its `ratio`-quantile (E-WEMoE).

    Entries above the linearly interpolated quantile q of |tau| stay: |tau| > q. With n entries,
    that are those above the floor(ratio (n - 1)) + 1 smallest one, so ratio 0 still drops the
    smallest and 1 drops all.

    Args:
        ratio: in [0, 1].
        stacked: how many leading axes index tensors of their own (1: experts; 2: layers too).

    Raises:
        ValueError: ratio is out of range.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio: expected a share in [0, 1], got {ratio}")

    def prune(leaf: jax.Array) -> jax.Array:
        if not is_merged(leaf) or not leaf.size:
            return leaf
        tensors = leaf.reshape(-1, *leaf.shape[stacked:])
        rank = count(ratio, tensors[0].size - 1) + 1
        limit = kth_smallest([jnp.abs(tensors)], rank)
        keep = jnp.abs(tensors) > limit.reshape(-1, *(1,) * (tensors.ndim - 1))
        return jnp.where(keep, tensors, 0).reshape(leaf.shape)

    return jax.tree.map(prune, tree)


def concrete_mask(
    uniform: jax.Array, logits: jax.Array, temperature: float = 0.5, rescale: bool = True
) -> jax.Array:
    """A relaxed binary mask, sigmoid((logit(u) + a) / temperature), divided by its mean.

    Args:
        uniform: u in (0, 1), of the logits' shape; `jax.random.uniform(key, shape, minval=tiny)`.
        logits: a, any shape; 0 at the start (Concrete subspace, arXiv 2312.06173).
    """
    dtype = compute_dtype(logits)
    noise = jnp.log(uniform.astype(dtype)) - jnp.log1p(-uniform.astype(dtype))
    mask = jax.nn.sigmoid((noise + logits) / temperature)
    if not rescale:
        return mask
    mean = jnp.mean(mask)
    return mask / jnp.where(mean > 0, mean, 1)
