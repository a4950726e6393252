"""The shape of every trained method: two pure functions, and stages that run them.

    method = commformer.trainer(env, network, graph, ppo, updates)  # from frozen configs
    state = method.init(key, batch)
    state, metrics = method.step(state, batch)  # jit, vmap, scan, shard it: it is pure

The random key, optimizer state and counters live in `state`; data is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax

State: TypeAlias = Any
"""A pytree of arrays."""
Batch: TypeAlias = Any
"""A whole device-resident dataset, a minibatch, or `None` for a simulator; a pytree of arrays."""
Metrics: TypeAlias = Mapping[str, jax.Array]
"""Flat names ("loss", "success_rate") to finite scalars."""


class Method(NamedTuple):
    """A training method as two pure functions."""

    init: Callable[[jax.Array, Batch], State]
    """(typed random key, batch) -> state."""
    step: Callable[[State, Batch], tuple[State, Metrics]]
    """(state, batch) -> (next state, metrics of this step)."""


def no_data(finished: Sequence[State]) -> Batch:
    """The data source of a stage that needs none: a simulator."""
    del finished


Axes: TypeAlias = str | tuple[str, ...] | None
"""Mesh axis ("data", "fsdp", "tensor") that an axis of an array is split over; or several, of which
as many of the first are used as divide its size; or none."""


class Rule(NamedTuple):
    """How leaves of a state or a batch are split over the devices of a mesh."""

    pattern: str
    """Regular expression, searched in a leaf's path ("levels/lower/params/encoder/...")."""
    spec: tuple[Axes, ...]
    """Of each leading axis of the leaf, of one seed."""


class Stage(NamedTuple):
    """One leg of a run: a method, what it is fed, how long it runs and how it is judged."""

    name: str
    """Unique within the run; names the stage's folder of checkpoints."""
    method: Method
    steps: int
    """How many times `method.step` is called."""
    data: Callable[[Sequence[State]], Batch] = no_data
    """Final states of the earlier stages (each with a leading seed axis) -> batch."""
    evaluate: Callable[[State, jax.Array], Metrics] | None = None
    """(state, key) -> metrics; pure, jitted and vmapped over seeds by the loop."""
    score: str | None = None
    """The evaluation metric (higher is better) that picks the best checkpoint."""
    rules: Sequence[Rule] = ()
    """Of the state: the first that matches a leaf splits it; the others are replicated."""
    draw: Callable[[State, Path], None] | None = None
    """Writes figures of one seed's final state into a folder, for the report."""
    judge: Callable[[State, Batch, jax.Array], Metrics] | None = None
    """(states and keys with a leading seed axis, batch) -> metrics [seeds]; called by the loop on
    the host, where `evaluate` is not enough: simulators outside of JAX, or a need of the data."""
    export: Callable[[State, Path], None] | None = None
    """Writes what the run was made for: final states with a leading seed axis, run folder."""
    batch_axes: Any = None
    """Which leaves of the batch have a leading seed axis, as `jax.vmap`'s `in_axes` (a prefix of
    the batch with 0 and None): by default all seeds share the batch."""
    batch_rules: Sequence[Rule] = ()
    """Of the batch, as `rules`. Where seeds are split over `data`, so is their axis in the batch,
    and what all seeds share is not."""


class Evaluated(NamedTuple):
    """What the evaluation of a method with nothing to train leaves behind."""

    metrics: Mapping[str, float]
    """Name to number, the important ones first."""
    files: Mapping[str, str]
    """File name to content."""
    draw: Callable[[Path], None] | None = None
    """Writes figures into a folder, for the report."""


class Part(NamedTuple):
    """One piece of an evaluation's work, kept so that a stopped one can go on."""

    name: str
    """Says what it is the result of: equal names, equal arrays."""
    compute: Callable[[], Mapping[str, Any]]
    """() -> arrays."""


class Work(NamedTuple):
    """The evaluation of a method with nothing to train."""

    parts: Sequence[Part]
    finish: Callable[[Sequence[Mapping[str, Any]]], Evaluated]
    """(the parts' arrays, in their order) -> what is left behind."""
