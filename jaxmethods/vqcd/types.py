"""What passes between the pieces of VQ-CD: pytrees of arrays."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import jax

Params: TypeAlias = Any
"""Nested dictionaries of arrays, by the names of the published network."""


class TaskData(NamedTuple):
    """One task's aligned windows on the device. Several tasks' may be stacked (`stack_tasks`)."""

    states: jax.Array
    """[N, n] int16 codes, or [N, C] float32 aligned rows."""
    actions: jax.Array
    """[N, m] int16 or [N, A] float32."""
    state_table: jax.Array | None
    """[codes, d] float32 what a code stands for; None with float rows."""
    action_table: jax.Array | None
    starts: jax.Array
    """[M] int32 first row of every window."""
    returns: jax.Array
    """[M] float32 the window's return-to-go at its first row, in [0, 1]."""
    count: jax.Array
    """[] int32: how many of the M windows are real; the others are padding."""
    task: jax.Array
    """[M] int32 the task that a window is of."""


class Penalty(NamedTuple):
    """A quadratic pull towards earlier weights: sum of importance (theta - center)^2."""

    center: Params
    importance: Params


class Bank(NamedTuple):
    """All tasks' weights as one tree, what continual learning hands on from task to task.

    A leaf is shared out (`owner` says which entry is whose), private (a leading axis of tasks), or
    one for all tasks.
    """

    params: Params
    """Running weights: {"network", "inverse", "adapters"}, the last two may be empty."""
    ema: Params
    """Their moving average, what plans are made with."""
    owner: Params
    """int8 like the leaf, -1 where free; None where the leaf is not shared out."""
    done: jax.Array
    """[] int32: how many tasks have been trained."""
    key: jax.Array
    """[] typed key; the randomness of task i at step t is folded from it, i and t."""
    optimizer: Any
    """Moments of the last task where they are kept, else None."""


class Feed(NamedTuple):
    """The batch of the planner's method: one task's data and what earlier tasks left."""

    data: TaskData
    task: jax.Array
    """[] int32: whose weights are trained."""
    bank: Bank | None
    """Weights at the start of this task, the result of the task before; None: freshly drawn."""
    replay: TaskData | None = None
    """Kept windows of earlier tasks, stacked: a leading axis on every leaf."""
    penalty: Penalty | None = None


class State(NamedTuple):
    """Training of one task under way."""

    bank: Bank
    task: jax.Array
    """[] int32"""
    optimizer: Any
    step: jax.Array
    """[] int32: steps of this task."""
