r"""DARE: entries of task vectors are dropped at random, the others make up for them.

    tau' = m tau / (1 - p),    m ~ Bernoulli(1 - p)

Yu et al. 2024, arXiv 2311.03099. Stacked task vectors [T, ...] (`trees.task_vectors`) go in and
come out; merge the result with `trees.apply_task_vectors`. `dare_ties` combines DARE with TIES.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmethods.merging.static.ties import Merge, Scope, merge_elected
from jaxmethods.merging.static.trees import (
    Coefficients,
    Tree,
    check_stack,
    compute_dtype,
    is_concrete,
    is_merged,
    leaf_key,
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
        key: typed random key [].
        tau: task vectors [T, ...].
        p: drop rate, float or []; 1 only without `rescale`.
        rescale: divide what is kept by 1 - p.
        where: (path, one task's leaf) -> whether to drop from this leaf; `matrices` for linear
            weights alone.

    Returns:
        A tree like `tau` with zeros where entries are dropped.

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
    """True where an entry is kept; a tree [T, ...] of bool.

    Args:
        key: typed random key [].
        tau: task vectors [T, ...].
        p: drop rate, float or [].
        where: see `dare`.

    Returns:
        A tree [T, ...] of bool.
    """

    def draw(path: str, vectors: jax.Array) -> jax.Array:
        if where is not None and not where(path, vectors[0]):
            return jnp.ones(vectors.shape, bool)
        return leaf_mask(leaf_key(key, path), vectors.shape, p)

    return map_with_names(draw, tau)


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
    """m tau / (1 - p) with given masks (True: keep).

    Args:
        tau: task vectors [T, ...].
        mask: a tree [T, ...] of bool, see `dare_mask`.
        p: drop rate, float or [].
        rescale: divide what is kept by 1 - p.
        where: see `dare`.

    Returns:
        A tree like `tau`.
    """
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
        key: typed random key [].
        base: theta_0, a tree of parameters.
        stack: experts theta_t, a tree like `base` with a leading axis, [T, ...].
        p: drop rate in [0, 1).
        density: share of the entries that TIES then keeps; dropped ones are its smallest.
        coefficients: lambda, see `ties.ties`.
        merge: see `ties.ties`.
        scope: see `ties.ties`.

    Returns:
        A tree like `base`, in its dtypes.

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
