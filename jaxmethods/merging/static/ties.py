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

from collections.abc import Sequence
from functools import reduce
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxmethods.merging.static.trees import (
    Coefficients,
    Tree,
    check_stack,
    combine,
    compute_dtype,
    is_merged,
    leaves_with_names,
    map_with_names,
    number_of_tasks,
    per_entry,
    scaled,
    spread,
    sum_over_tasks,
    task_vectors,
)
from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.order_statistics import kth_smallest, sum_over_entries
from jaxmethods.numerics.precision import whole_part

Scope: TypeAlias = Literal["global", "leaf"]
"""Compare magnitudes within a whole expert (the paper's code) or within each leaf."""
Merge: TypeAlias = Literal["sum", "mean", "max"]
Flavor: TypeAlias = Literal["paper", "mergekit"]


@compiled("density", "merge", "scope", "flavor")
def ties(
    base: Tree,
    stack: Tree,
    *,
    density: float = 0.2,
    coefficients: Coefficients = 0.3,
    merge: Merge = "sum",
    scope: Scope = "global",
    flavor: Flavor = "paper",
) -> Tree:
    """theta_0 + lambda m.

    Args:
        base: theta_0, a tree of parameters.
        stack: experts theta_t, a tree like `base` with a leading axis, [T, ...].
        density: rho, the share of entries kept, in [0, 1]; above 1 it is taken for per cent.
            n = d - floor(rho d) gives the threshold, the n-th smallest magnitude; it is kept
            itself, so floor(rho d) + 1 entries are, and more with ties. 1 keeps everything and
            0 nothing.
        coefficients: lambda. In the paper's flavor it multiplies what was merged; in mergekit's
            it weighs the task vectors before signs are elected.
        merge: how entries that agree become one: their sum, their mean or the largest. The
            mergekit flavor always divides by the sum of the agreeing weights.
        scope: whether the threshold is taken over a whole expert ("global") or leaf by leaf.
        flavor: "mergekit" keeps exactly floor(rho n) entries of every leaf (first ones first
            among equals), takes 0 for a positive sign, and knows no majority.

    Returns:
        A tree like `base`, in its dtypes.

    Raises:
        ValueError: density is out of range, trees don't match, or an option is unknown.
    """
    if flavor == "mergekit":
        weights = mergekit_weights(task_vectors(base, stack), density, coefficients)
        return combine(base, stack, weights)
    if flavor != "paper":
        raise ValueError(f"flavor: expected 'paper' or 'mergekit', got {flavor!r}")
    check_stack(base, stack)
    return merge_elected(base, stack, None, 0.0, density, coefficients, merge, scope)


@compiled("density", "merge", "scope")
def merge_elected(
    base: Tree,
    stack: Tree,
    masks: Tree | None,
    drop: Any,
    density: float,
    coefficients: Coefficients,
    merge: Merge,
    scope: Scope,
) -> Tree:
    """TIES of the experts, or of what DARE's masks and rescaling leave of their task vectors.

    Args:
        base: theta_0.
        stack: the experts, leaves [T, ...].
        masks: what DARE keeps, bool in the shape of `stack`; None: everything.
        drop: DARE's drop rate; not read without masks.
        density: rho, static.
        coefficients: lambda: a number, [T], or a tree of them.
        merge: how what agrees is merged; static.
        scope: what a share is taken of; static.

    Returns:
        The merged parameters, each leaf in the base's dtype.
    """
    names = [name for name, _ in leaves_with_names(base)]
    origins, structure = jax.tree.flatten(base)
    stacks = jax.tree.leaves(stack)
    mask_of = [None] * len(origins) if masks is None else jax.tree.leaves(masks)
    given = [
        Experts(origin, experts, mask, drop)
        for origin, experts, mask in zip(origins, stacks, mask_of, strict=True)
    ]
    weights = jax.tree.leaves(spread(coefficients, base))
    result = list(origins)
    for place, election in elections(given, density, scope).items():
        coefficient = per_entry(weights[place], stacks[place], names[place])
        result[place] = merge_leaf(given[place], election, coefficient, merge)
    return jax.tree.unflatten(structure, result)


@compiled("density", "scope")
def ties_split(tau: Tree, density: float = 0.2, scope: Scope = "global") -> Tree:
    """The entries of each task vector that survive trimming and agree with the elected sign.

    Their sum is the merged vector of `merge="sum"`; one by one they are the task vectors of
    AdaMerging++.

    Args:
        tau: task vectors [T, ...].
        density, scope: see `ties`.

    Returns:
        A tree like `tau`, zero where an entry was trimmed or outvoted.
    """
    number_of_tasks(tau)
    vectors, structure = jax.tree.flatten(tau)
    given = [Experts(jnp.zeros(leaf.shape[1:], leaf.dtype), leaf) for leaf in vectors]
    result = [jnp.zeros_like(leaf) for leaf in vectors]
    for place, election in elections(given, density, scope).items():
        keep = jnp.stack(kept_entries(given[place], election))
        result[place] = jnp.where(keep, vectors[place], 0)
    return jax.tree.unflatten(structure, result)


class Experts(NamedTuple):
    """One leaf of everything that TIES merges."""

    base: jax.Array
    stack: jax.Array
    """[T, ...]."""
    mask: jax.Array | None = None
    """[T, ...] of bool: the entries that DARE keeps."""
    drop: Any = 0.0
    """DARE's p, by which they are rescaled."""

    def arrays(self) -> tuple[jax.Array, ...]:
        """All [T or 1, ...]."""
        given = (self.base[None], self.stack)
        return given if self.mask is None else (*given, self.mask)


class Election(NamedTuple):
    """What decides which entries of a leaf are merged."""

    limits: jax.Array
    """[T], the smallest magnitude kept, see `thresholds`."""
    majority: jax.Array
    """[] float32, the sign of entries whose total is 0; 0 where there is none."""


def elections(leaves: Sequence[Experts], density: float, scope: Scope) -> dict[int, Election]:
    """Place -> election of the leaves that are merged: one for all of them, or each its own.

    Raises:
        ValueError: density or scope is wrong.
    """
    if scope not in ("global", "leaf"):
        raise ValueError(f"scope: expected 'global' or 'leaf', got {scope!r}")
    share(density)
    merged = [place for place, leaf in enumerate(leaves) if is_merged(leaf.base)]
    groups = [merged] if scope == "global" else [[place] for place in merged]
    found = {}
    for group in groups if merged else []:
        limits = thresholds([leaves[place] for place in group], density)
        ballots = [leaf_ballot(leaves[place], limits) for place in group]
        majority = jnp.sign(sum(ballots, jnp.int32(0))).astype(jnp.float32)
        found |= dict.fromkeys(group, Election(limits, majority))
    return found


def thresholds(leaves: Sequence[Experts], density: float) -> jax.Array:
    """[T] float32: the smallest magnitude that is kept, within all leaves together."""
    density = share(density)
    tasks, size = len(leaves[0].stack), sum(leaf.base.size for leaf in leaves)
    rank = size - whole_part(density, size)
    if density == 0 or rank == 0:  # nothing or all
        return jnp.full(tasks, 0.0 if density else jnp.inf, jnp.float32)
    drop = leaves[0].drop

    def magnitude(base: jax.Array, stack: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        return jnp.abs(_vectors(base, stack, mask, drop))

    return kth_smallest([leaf.arrays() for leaf in leaves], rank, magnitude)


def leaf_ballot(experts: Experts, limits: jax.Array) -> jax.Array:
    """[] int32: how many more entries have a positive total than a negative one."""

    def vote(base: jax.Array, stack: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        leaf = Experts(base[0], stack, mask, experts.drop)
        return jnp.sign(_totals(leaf, limits)).astype(jnp.int32)[None]

    return sum_over_entries(vote, experts.arrays())[0]


def is_undecided(experts: Experts, limits: jax.Array) -> jax.Array:
    """[] bool: kept entries cancel exactly somewhere, so that the majority decides."""

    def cancel(base: jax.Array, stack: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        leaf = Experts(base[0], stack, mask, experts.drop)
        vectors = [_vectors_of(leaf, t) for t in range(len(stack))]
        kept = [(jnp.abs(v) >= limits[t]) & (v != 0) for t, v in enumerate(vectors)]
        return ((_totals(leaf, limits) == 0) & reduce(jnp.logical_or, kept)).astype(jnp.int32)[None]

    return sum_over_entries(cancel, experts.arrays())[0] > 0


def merge_leaf(
    experts: Experts, election: Election, coefficient: jax.Array, merge: Merge
) -> jax.Array:
    """TIES of one leaf, in the base's dtype.

    Tasks are written out one by one: then all of it is one pass over memory.

    Args:
        experts: of the leaf, with its base.
        election: threshold and signs.
        coefficient: lambda, [T, ...] that broadcasts over the stack.
        merge: how what agrees is merged; static.

    Returns:
        The merged leaf in the base's shape and dtype.
    """
    tasks = range(len(experts.stack))
    vectors = [_vectors_of(experts, t) for t in tasks]
    keep = kept_entries(experts, election)
    weights = [_rescaled(experts, w, t) for t, w in enumerate(_weights(vectors, keep, merge))]
    weights = [coefficient[t] * weight for t, weight in enumerate(weights)]
    dtype = compute_dtype(experts.base, experts.stack)
    rest = 1 - reduce(jnp.add, weights)
    terms = [scaled(weights[t], experts.stack[t].astype(dtype)) for t in tasks]
    mixed = scaled(rest, experts.base.astype(dtype)) + reduce(jnp.add, terms)
    return mixed.astype(experts.base.dtype)


def kept_entries(experts: Experts, election: Election) -> list[jax.Array]:
    """For each task, which entries [...] of a leaf are large enough and of the elected sign."""
    sign, limits = elected_sign(experts, election), election.limits
    vectors = [_vectors_of(experts, t) for t in range(len(experts.stack))]
    return [
        (jnp.abs(v) >= limits[t]) & jnp.where(sign > 0, v > 0, v < 0) for t, v in enumerate(vectors)
    ]


def elected_sign(experts: Experts, election: Election) -> jax.Array:
    """That of the kept entries' total, [...] of one leaf; the majority's where they cancel."""
    total, majority = _totals(experts, election.limits), election.majority
    return jnp.where(total == 0, majority, jnp.sign(total))


def _totals(experts: Experts, limits: jax.Array) -> jax.Array:
    """Sum of the kept entries, in the shape of one expert."""
    vectors = [_vectors_of(experts, t) for t in range(len(experts.stack))]
    kept = [jnp.where(jnp.abs(v) >= limits[t], v, 0) for t, v in enumerate(vectors)]
    return reduce(jnp.add, kept)


def _vectors_of(experts: Experts, task: int) -> jax.Array:
    mask = None if experts.mask is None else experts.mask[task]
    return _vectors(experts.base, experts.stack[task], mask, experts.drop)


def _vectors(base: jax.Array, stack: jax.Array, mask: jax.Array | None, drop: Any) -> jax.Array:
    dtype = compute_dtype(base, stack)
    vectors = stack.astype(dtype) - base.astype(dtype)
    return vectors if mask is None else jnp.where(mask, vectors, 0) / (1 - drop)


def _rescaled(experts: Experts, weight: jax.Array, task: int) -> jax.Array:
    if experts.mask is None:
        return weight
    return jnp.where(experts.mask[task], weight, 0) / (1 - experts.drop)


def _weights(
    vectors: Sequence[jax.Array], keep: Sequence[jax.Array], merge: Merge
) -> list[jax.Array]:
    """w_t with m = sum_t w_t tau_t."""
    dtype = compute_dtype(*vectors)
    if merge == "sum":
        return [kept.astype(dtype) for kept in keep]
    if merge == "mean":
        agreeing = reduce(jnp.add, [kept.astype(jnp.int32) for kept in keep])
        divisor = jnp.maximum(agreeing, 1).astype(dtype)
        return [kept.astype(dtype) / divisor for kept in keep]
    if merge == "max":
        magnitudes = [
            jnp.where(kept, jnp.abs(v), -1) for v, kept in zip(vectors, keep, strict=True)
        ]
        largest = reduce(jnp.maximum, magnitudes)
        weights, free = [], jnp.ones(largest.shape, bool)
        for magnitude, kept in zip(magnitudes, keep, strict=True):  # the first of equal ones
            chosen = free & (magnitude == largest)
            weights.append((chosen & kept).astype(dtype))
            free = free & ~chosen
        return weights
    raise ValueError(f"merge: expected 'sum', 'mean' or 'max', got {merge!r}")


def mergekit_weights(tau: Tree, density: float, coefficients: Coefficients) -> Tree:
    """w_t per entry of the mergekit flavor, a tree [T, ...] float32."""
    density = share(density)
    one = jax.tree.map(lambda leaf: leaf[0], tau)

    def weigh(path: str, vectors: jax.Array, coefficient: jax.Array) -> jax.Array:
        keep = largest(vectors, whole_part(density, vectors[0].size))
        weight = jnp.where(keep, per_entry(coefficient, vectors, path), 0.0)
        total = sum_over_tasks(weight * vectors)
        sign = jnp.where(total >= 0, 1.0, -1.0)
        agrees = jnp.where(jnp.sign(weight * vectors) == sign, weight, 0.0)
        divisor = sum_over_tasks(agrees)
        return agrees / jnp.where(divisor == 0, 1.0, divisor)

    return map_with_names(weigh, tau, spread(coefficients, one))


def largest(vectors: jax.Array, count: int) -> jax.Array:
    """[T, ...] bool: exactly the `count` largest magnitudes of every task, first of equal ones."""
    if count <= 0:
        return jnp.zeros(vectors.shape, bool)
    flat = jnp.abs(vectors.reshape(vectors.shape[0], -1))  # [T, n]
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
