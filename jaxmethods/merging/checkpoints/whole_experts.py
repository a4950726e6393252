"""TIES and PCB of checkpoints whose experts are compared as wholes and don't fit in memory.

Order statistics of whole experts are found first, in passes that count; then every part is merged
by the leaf functions of `ties` and `pcb`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.merging.checkpoints.parts import Loaded, Passes, Settings
from jaxmethods.merging.static import dare, trees
from jaxmethods.merging.static import pcb as pcb_of_leaves
from jaxmethods.merging.static import ties as ties_of_leaves
from jaxmethods.merging.static.ties import Election, Experts, Merge
from jaxmethods.merging.static.trees import apply_task_vectors, per_entry, task_vectors
from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.precision import whole_part


class Elected(NamedTuple):
    """A part merged by TIES, and how the vote went."""

    merged: jax.Array
    ballot: jax.Array
    """[] int32: positive minus negative signs."""
    undecided: jax.Array
    """[] bool: some kept entries cancel exactly, so the result depends on the majority."""


def ties(passes: Passes, settings: Settings) -> None:
    """TIES, after DARE where the settings have its `drop`.

    The majority sign, which is needed only where kept entries cancel exactly, is counted while
    parts are merged; the few that need it are merged again.
    """
    limits = _limits(passes, settings)
    merge, undecided, ballots = settings["merge"], [], 0
    for loaded, coefficient in passes.read():
        election = Election(limits, jnp.float32(1))
        elected = _merge_elected(_experts(loaded, settings), election, coefficient, merge)
        passes.write(loaded.part, elected.merged)
        ballots += int(elected.ballot)
        undecided += [loaded.part] * bool(elected.undecided)
    if ballots > 0:  # what was taken for granted
        return
    election = Election(limits, jnp.float32(np.sign(ballots)))
    for loaded, coefficient in passes.read(undecided):
        elected = _merge_elected(_experts(loaded, settings), election, coefficient, merge)
        passes.write(loaded.part, elected.merged)


def pcb(passes: Passes, settings: Settings) -> None:
    """PCB: the limits of the magnitudes, then those of q, then the merge."""
    ranks = pcb_of_leaves.order_ranks(passes.entries, settings["ratio"])
    low, high = passes.select(_magnitudes, ranks.magnitude, of=2)

    def competing(loaded: Loaded) -> jax.Array:
        return _compete(loaded.base, loaded.stack, low, high)

    wanted = [ranks.competitiveness, passes.entries]
    floor, top = passes.select(competing, wanted, of=2)
    limits = pcb_of_leaves.Limits(low, high, floor, top)
    for loaded, coefficient in passes.read():
        passes.write(loaded.part, _balance(loaded.base, loaded.stack, limits, coefficient))


def mask_of(loaded: Loaded, settings: Settings) -> jax.Array:
    """DARE's mask of a part, [T, ...] of bool: that of a merge in memory."""
    key = trees.leaf_key(jax.random.key(settings["seed"]), loaded.part.name)
    return dare.leaf_mask(key, loaded.stack.shape, settings["drop"])


def _limits(passes: Passes, settings: Settings) -> jax.Array:
    """[T]: the smallest magnitude that is kept."""
    rank = passes.entries - whole_part(settings["density"], passes.entries)
    if settings["density"] == 0 or rank == 0:
        return jnp.full(passes.experts, 0.0 if settings["density"] else jnp.inf, jnp.float32)
    if "drop" not in settings:
        return passes.select(_magnitudes, [rank], of=1)[0]

    def dared(loaded: Loaded) -> jax.Array:
        tau = task_vectors(loaded.base, loaded.stack)
        return jnp.abs(dare.drop_entries(tau, mask_of(loaded, settings), settings["drop"]))

    return passes.select(dared, [rank], of=1)[0]


def _magnitudes(loaded: Loaded) -> jax.Array:
    return jnp.abs(task_vectors(loaded.base, loaded.stack))


def _experts(loaded: Loaded, settings: Settings) -> Experts:
    if "drop" not in settings:
        return Experts(loaded.base, loaded.stack)
    return Experts(loaded.base, loaded.stack, mask_of(loaded, settings), settings["drop"])


@compiled("merge")
def _merge_elected(experts: Experts, election: Election, coefficient: Any, merge: Merge) -> Elected:
    coefficient = per_entry(coefficient, experts.stack, "")
    merged = ties_of_leaves.merge_leaf(experts, election, coefficient, merge)
    undecided = ties_of_leaves.is_undecided(experts, election.limits)
    return Elected(merged, ties_of_leaves.leaf_ballot(experts, election.limits), undecided)


@compiled()
def _compete(base: jax.Array, stack: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    return pcb_of_leaves.competitiveness(task_vectors(base, stack), low, high)


@compiled()
def _balance(
    base: jax.Array, stack: jax.Array, limits: pcb_of_leaves.Limits, coefficient: Any
) -> jax.Array:
    balanced = pcb_of_leaves.balance_leaf(task_vectors(base, stack), limits)
    return apply_task_vectors(base, pcb_of_leaves.merge_balanced(*balanced), coefficient)
