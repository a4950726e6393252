r"""TIES: trim, elect signs, merge what agrees.

Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023,
arXiv 2306.01708.

    trim    keep the largest |tau_t|, a share rho ("density") of one expert's entries
    elect   s = sign(sum_t trimmed tau_t); where 0, the majority sign of all entries
    merge   m = sum, mean or largest of the kept entries of sign s
    theta = theta_0 + lambda m

Every result is written as weights w_t per entry, m = sum_t w_t tau_t, so that `trees.combine`
gives the experts themselves where nothing is in their way.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from jaxmethods.merging.order_statistics import kth_smallest
from jaxmethods.merging.trees import (
    Coefficients,
    Tree,
    combine,
    is_merged,
    map_with_names,
    number_of_tasks,
    per_entry,
    spread,
    task_vectors,
)

Scope: TypeAlias = Literal["global", "leaf"]
"""Compare magnitudes within a whole expert (the paper's code) or within each leaf."""
Merge: TypeAlias = Literal["sum", "mean", "max"]
Flavour: TypeAlias = Literal["paper", "mergekit"]


@partial(jax.jit, static_argnames=("density", "merge", "scope", "flavour"))
def ties(
    base: Tree,
    stack: Tree,
    *,
    density: float = 0.2,
    coefficients: Coefficients = 0.3,
    merge: Merge = "sum",
    scope: Scope = "global",
    flavour: Flavour = "paper",
) -> Tree:
    """theta_0 + lambda m.

    Args:
        density: rho, the share of entries kept, in [0, 1]; above 1 it is taken for per cent.
            n = d - floor(rho d) gives the threshold, the n-th smallest magnitude; it is kept
            itself, so floor(rho d) + 1 entries are, and more with ties. 1 keeps everything and
            0 nothing.
        coefficients: lambda. In the paper's flavour it multiplies what was merged; in mergekit's
            it weighs the task vectors before signs are elected.
        merge: how entries that agree become one: their sum, their mean or the largest. The
            mergekit flavour always divides by the sum of the agreeing weights.
        flavour: "mergekit" keeps exactly floor(rho n) entries of every leaf (first ones first
            among equals), takes 0 for a positive sign, and knows no majority.

    Raises:
        ValueError: density is out of range, trees don't match, or an option is unknown.
    """
    if flavour == "mergekit":
        weights = mergekit_weights(task_vectors(base, stack), density, coefficients)
        return combine(base, stack, weights)
    if flavour != "paper":
        raise ValueError(f"flavour: expected 'paper' or 'mergekit', got {flavour!r}")
    agreeing = agreement_weights(task_vectors(base, stack), density, merge, scope)

    def scale(path: str, coefficient: jax.Array, weight: jax.Array) -> jax.Array:
        return per_entry(coefficient, weight, path) * weight

    return combine(base, stack, map_with_names(scale, spread(coefficients, base), agreeing))


def agreement_weights(
    tau: Tree, density: float = 0.2, merge: Merge = "sum", scope: Scope = "global"
) -> Tree:
    """w_t per entry with m = sum_t w_t tau_t, a tree [T, ...] float32."""
    kept = kept_entries(tau, density, scope)
    return jax.tree.map(lambda vectors, keep: leaf_weights(vectors, keep, merge), tau, kept)


def leaf_weights(vectors: jax.Array, keep: jax.Array, merge: Merge) -> jax.Array:
    """w_t of one leaf [T, ...] float32, from which of its entries take part."""
    if merge == "sum":
        return keep.astype(jnp.float32)
    if merge == "mean":
        return keep / jnp.maximum(jnp.sum(keep, axis=0), 1)
    if merge == "max":
        magnitude = jnp.where(keep, jnp.abs(vectors), -1.0)
        largest = jnp.argmax(magnitude, axis=0)
        chosen = jnp.arange(len(keep)).reshape(-1, *(1,) * (keep.ndim - 1)) == largest
        return (chosen & keep).astype(jnp.float32)
    raise ValueError(f"merge: expected 'sum', 'mean' or 'max', got {merge!r}")


@partial(jax.jit, static_argnames=("density", "scope"))
def ties_split(tau: Tree, density: float = 0.2, scope: Scope = "global") -> Tree:
    """The entries of each task vector that survive trimming and agree with the elected sign.

    Their sum is the merged vector of `merge="sum"`; one by one they are the task vectors of
    AdaMerging++.
    """
    return jax.tree.map(
        lambda vectors, keep: jnp.where(keep, vectors, 0), tau, kept_entries(tau, density, scope)
    )


def kept_entries(tau: Tree, density: float, scope: Scope = "global") -> Tree:
    """Which entries take part: trimmed ones of the elected sign; a tree [T, ...] of bool."""
    trimmed = trim_mask(tau, density, scope)
    signs = elected_signs(tau, trimmed, scope)

    return jax.tree.map(agrees, tau, trimmed, signs)


def agrees(vectors: jax.Array, keep: jax.Array, sign: jax.Array) -> jax.Array:
    """Which kept entries of one leaf [T, ...] have the elected sign."""
    return keep & jnp.where(sign > 0, vectors > 0, vectors < 0)


def trim_mask(tau: Tree, density: float, scope: Scope = "global") -> Tree:
    """The largest magnitudes of every task, a tree [T, ...] of bool; see `ties` for the count."""
    density = share(density)
    if scope not in ("global", "leaf"):
        raise ValueError(f"scope: expected 'global' or 'leaf', got {scope!r}")
    number_of_tasks(tau)

    def of_leaves(leaves: list[jax.Array]) -> jax.Array | None:
        size = sum(leaf[0].size for leaf in leaves)
        rank = size - int(density * size)
        if rank == 0 or density == 0:
            return None
        return kth_smallest([jnp.abs(leaf) for leaf in leaves], rank)

    merged = [leaf for leaf in jax.tree.leaves(tau) if is_merged(leaf)]
    whole = of_leaves(merged) if scope == "global" and merged else None

    def keep(vectors: jax.Array) -> jax.Array:
        if not is_merged(vectors):
            return jnp.zeros(vectors.shape, bool)
        threshold = whole if scope == "global" else of_leaves([vectors])
        if threshold is None:  # all or nothing
            return jnp.full(vectors.shape, density > 0)
        return jnp.abs(vectors) >= threshold.reshape(-1, *(1,) * (vectors.ndim - 1))

    return jax.tree.map(keep, tau)


def elected_signs(tau: Tree, trimmed: Tree, scope: Scope = "global") -> Tree:
    """s in {-1, 0, 1} per entry, float32 in the shapes of one expert.

    The sign of the larger total; entries without one take the majority sign of all entries (of
    the leaf, with scope "leaf"), which may itself be 0.
    """

    signs = jax.tree.map(leaf_signs, tau, trimmed)
    ballots = jax.tree.map(lambda sign: jnp.sum(sign.astype(jnp.int32)), signs)
    whole = sum(jax.tree.leaves(ballots), jnp.int32(0))

    def settle(sign: jax.Array, ballot: jax.Array) -> jax.Array:
        majority = jnp.sign(whole if scope == "global" else ballot).astype(jnp.float32)
        return jnp.where(sign == 0, majority, sign)

    return jax.tree.map(settle, signs, ballots)


def leaf_signs(vectors: jax.Array, keep: jax.Array) -> jax.Array:
    """Sign of the sum of one leaf's kept entries, float32; 0 where they cancel or there is none."""
    return jnp.sign(jnp.sum(jnp.where(keep, vectors, 0), axis=0).astype(jnp.float32))


def mergekit_weights(tau: Tree, density: float, coefficients: Coefficients) -> Tree:
    """w_t per entry of the mergekit flavour, a tree [T, ...] float32."""
    density = share(density)
    one = jax.tree.map(lambda leaf: leaf[0], tau)

    def weigh(path: str, vectors: jax.Array, coefficient: jax.Array) -> jax.Array:
        keep = largest(vectors, int(density * vectors[0].size))
        weight = jnp.where(keep, per_entry(coefficient, vectors, path), 0.0)
        total = jnp.sum(weight * vectors, axis=0)
        sign = jnp.where(total >= 0, 1.0, -1.0)
        agrees = jnp.where(jnp.sign(weight * vectors) == sign, weight, 0.0)
        divisor = jnp.sum(agrees, axis=0)
        return agrees / jnp.where(divisor == 0, 1.0, divisor)

    return map_with_names(weigh, tau, spread(coefficients, one))


def largest(vectors: jax.Array, count: int) -> jax.Array:
    """[T, ...] bool: exactly the `count` largest magnitudes of every task, first of equal ones."""
    if count <= 0:
        return jnp.zeros(vectors.shape, bool)
    flat = jnp.abs(vectors.reshape(vectors.shape[0], -1))
    threshold = kth_smallest([flat], flat.shape[1] - count + 1)[:, None]
    above = flat > threshold
    equal = flat == threshold
    missing = count - jnp.sum(above, axis=1, keepdims=True, dtype=jnp.int32)
    first = jnp.cumsum(equal, axis=1, dtype=jnp.int32) <= missing
    return (above | (equal & first)).reshape(vectors.shape)


def share(density: float) -> float:
    """A density in [0, 1]; above 1 it is per cent. Raises `ValueError` outside [0, 100]."""
    if not 0 <= density <= 100:
        raise ValueError(f"density: expected a share in [0, 1] or per cent, got {density}")
    return density / 100 if density > 1 else density
