"""Static merges of one part of the checkpoints: what `streaming` does between reading and writing.

Every function is the one of whole trees, given one leaf; masks come from the tensor's name, so they
are those of a merge in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.merging import arithmetic, competition, sign_election, sparsify, spectral
from jaxmethods.merging.checkpoints import Loaded
from jaxmethods.merging.merge_config import MergeConfig
from jaxmethods.merging.sign_election import Merge
from jaxmethods.merging.trees import apply_task_vectors, combine, per_entry, task_vectors

MergePart = Callable[[Loaded, Any], jax.Array]
"""(part of all checkpoints, coefficient [] or [T]) -> merged part."""
ENTRYWISE = {"average", "task_arithmetic", "ties", "pcb"}
"""Methods that look at one entry at a time, TIES and PCB with limits of whole experts at hand."""


class Elected(NamedTuple):
    """A part merged by TIES, and how the vote went."""

    merged: jax.Array
    ballot: jax.Array
    """[] int32: positive minus negative signs."""
    undecided: jax.Array
    """[] bool: some kept entries cancel exactly, so the result depends on the majority."""


def needs_whole_experts(config: MergeConfig) -> bool:
    """TIES with global magnitudes and PCB compare entries of different tensors."""
    if config.method == "pcb":
        return True
    if config.method not in ("ties", "dare_ties") or config.flavour == "mergekit":
        return False
    return config.value("scope") == "global"


def merges_in_parts(config: MergeConfig) -> bool:
    """Whether a tensor may be cut."""
    if config.method == "ties":
        return needs_whole_experts(config)
    return config.method in ENTRYWISE


def merge_of(config: MergeConfig) -> MergePart:
    """Of the methods that need to know one tensor at a time only."""
    value = config.value
    of_method: dict[str, Callable[[], MergePart]] = {
        "average": lambda: partial(_average, normalize=value("normalize")),
        "task_arithmetic": lambda: lambda part, c: combine(part.base, part.stack, c),
        "ties": lambda: partial(_ties_of_leaf, config),
        "dare": lambda: _of_vectors(partial(_dare, config)),
        "dare_ties": lambda: partial(_dare_ties_of_leaf, config),
        "breadcrumbs": lambda: _of_vectors(
            lambda name, tau: sparsify.breadcrumbs(tau, value("density"), value("gamma"))
        ),
        "della": lambda: _of_vectors(partial(_della, config)),
        "model_stock": lambda: lambda part, c: arithmetic.model_stock(part.base, part.stack),
        "slerp": lambda: lambda part, c: arithmetic.slerp(part.base, part.stack[0], c),
        "tsv": lambda: lambda part, c: spectral.tsv_merge(part.base, part.stack, c),
        "iso_c": lambda: lambda part, c: spectral.iso_c(part.base, part.stack, c),
    }
    return of_method[config.method]()


def vectors_of(config: MergeConfig, loaded: Loaded) -> jax.Array:
    """The task vectors whose magnitudes TIES and PCB compare, [T, ...] float32."""
    tau = task_vectors(loaded.base, loaded.stack)
    if config.method != "dare_ties":
        return tau
    return sparsify.drop_entries(tau, _mask(config, loaded.part.name, tau), config.value("drop"))


def elect(
    config: MergeConfig, loaded: Loaded, thresholds: jax.Array, majority: float, coefficient: Any
) -> Elected:
    """TIES of one part with magnitudes compared in whole experts.

    Args:
        thresholds: [T], the smallest magnitude kept.
        majority: sign of all entries together.
        coefficient: lambda, [] or [T].
    """
    mask = None
    if config.method == "dare_ties":
        mask = _mask(config, loaded.part.name, loaded.stack)
    drop = 0.0 if mask is None else config.value("drop")
    given = (loaded.base, loaded.stack, mask, drop, thresholds, majority, coefficient)
    return _elect(*given, config.value("merge"))


@partial(jax.jit, static_argnames=("merge",))
def _elect(
    base: jax.Array,
    stack: jax.Array,
    mask: jax.Array | None,
    drop: Any,
    thresholds: jax.Array,
    majority: Any,
    coefficient: Any,
    merge: Merge,
) -> Elected:
    experts = sign_election.Experts(base, stack, mask, drop)
    coefficient = per_entry(coefficient, stack, "")
    merged = sign_election.merge_leaf(experts, thresholds, majority, coefficient, merge)
    undecided = sign_election.is_undecided(experts, thresholds)
    return Elected(merged, sign_election.leaf_ballot(experts, thresholds), undecided)


@jax.jit
def compete(base: jax.Array, stack: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """PCB's q of one part."""
    return competition.competitiveness(task_vectors(base, stack), low, high)


@jax.jit
def merge_competing(
    base: jax.Array, stack: jax.Array, limits: competition.Limits, coefficient: Any
) -> jax.Array:
    """PCB of one part."""
    balanced = competition.balance_leaf(task_vectors(base, stack), limits)
    return apply_task_vectors(base, competition.merge_balanced(*balanced), coefficient)


def _of_vectors(thin: Callable[[str, jax.Array], jax.Array]) -> MergePart:
    def merge(loaded: Loaded, coefficient: Any) -> jax.Array:
        tau = thin(loaded.part.name, task_vectors(loaded.base, loaded.stack))
        return apply_task_vectors(loaded.base, tau, coefficient)

    return merge


def _average(loaded: Loaded, coefficient: Any, normalize: bool) -> jax.Array:
    # Experts may be narrower than the base, and `average` returns their type.
    stack = loaded.stack.astype(jnp.promote_types(loaded.stack.dtype, jnp.float32))
    merged = arithmetic.average(stack, coefficient, normalize and coefficient is not None)
    return merged.astype(loaded.base.dtype)


def _ties_of_leaf(config: MergeConfig, loaded: Loaded, coefficient: Any) -> jax.Array:
    options = {"density": config.value("density"), "flavour": config.value("flavour")}
    options |= {"merge": config.value("merge"), "scope": "leaf"}
    return sign_election.ties(loaded.base, loaded.stack, coefficients=coefficient, **options)


def _dare_ties_of_leaf(config: MergeConfig, loaded: Loaded, coefficient: Any) -> jax.Array:
    mask = _mask(config, loaded.part.name, loaded.stack)
    drop, density, merge = map(config.value, ("drop", "density", "merge"))
    given = (loaded.base, loaded.stack, mask, drop, density, coefficient)
    return _merge_elected(*given, merge=merge, scope="leaf")


_merge_elected = jax.jit(sign_election.merge_elected, static_argnames=("density", "merge", "scope"))


def _dare(config: MergeConfig, name: str, tau: jax.Array) -> jax.Array:
    if config.value("matrices_only") and not sparsify.matrices(name, tau[0]):
        return tau
    p = config.value("drop")
    return sparsify.drop_entries(tau, _mask(config, name, tau), p if config.value("rescale") else 0)


def _della(config: MergeConfig, name: str, tau: jax.Array) -> jax.Array:
    key = sparsify.leaf_key(jax.random.key(config.value("seed")), name)
    density, epsilon, rescale = map(config.value, ("density", "epsilon", "rescale"))
    return sparsify.della_leaf(key, tau, density, epsilon, rescale)


def _mask(config: MergeConfig, name: str, tau: jax.Array) -> jax.Array:
    key = sparsify.leaf_key(jax.random.key(config.value("seed")), name)
    return sparsify.leaf_mask(key, tau.shape, config.value("drop"))
