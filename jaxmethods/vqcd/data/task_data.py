"""A task's aligned rows and windows on the device: gathered, stacked, joined.

A task that is one of several is padded to the longest, so that all have the shapes of one program;
padding is never drawn, since windows are drawn below `count`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.numerics.precision import whole_part
from jaxmethods.vqcd.types import TaskData

LARGEST_CODE = np.iinfo(np.int16).max


class Windows(NamedTuple):
    """A batch of aligned windows."""

    states: jax.Array
    """[B, T, C]"""
    actions: jax.Array
    """[B, T, A]"""
    returns: jax.Array
    """[B]"""
    task: jax.Array
    """[B] int32"""


def task_data(
    states: tuple[jax.Array, jax.Array | None],
    actions: tuple[jax.Array, jax.Array | None],
    starts: np.ndarray | jax.Array,
    returns: np.ndarray | jax.Array,
    task: int = 0,
) -> TaskData:
    """Puts one task's aligned rows and windows on the device.

    Args:
        states: rows or codes and their table, as `alignment.align_rows` returns them.
        actions: the same.
        starts: [M] first rows of windows.
        returns: [N] normalized return-to-go of every row.
        task: the task's number.

    Returns:
        The rows as given; `starts`, `returns` (at each window's first row) and `task` [M], and
        `count` M.

    Raises:
        ValueError: there is no window.
    """
    number = len(starts)
    if not number:
        raise ValueError("starts: expected at least one window, got none")
    starts = jnp.asarray(starts, jnp.int32)
    return TaskData(
        states=states[0],
        actions=actions[0],
        state_table=states[1],
        action_table=actions[1],
        starts=starts,
        returns=jnp.asarray(returns, jnp.float32)[starts],
        count=jnp.int32(number),
        task=jnp.full(number, task, jnp.int32),
    )


def gather(data: TaskData, index: jax.Array, horizon: int) -> Windows:
    """Gathers windows, codes replaced by what they stand for.

    Args:
        data: one task's, or joined tasks'.
        index: [B] int32 numbers of windows, below `data.count`.
        horizon: T rows each; static.

    Returns:
        States [B, T, C], actions [B, T, A], returns [B], tasks [B].
    """
    rows = data.starts[index][:, None] + jnp.arange(horizon)  # [B, T]
    return Windows(
        _values(data.states[rows], data.state_table),
        _values(data.actions[rows], data.action_table),
        data.returns[index],
        data.task[index],
    )


def _values(rows: jax.Array, table: jax.Array | None) -> jax.Array:
    if table is None:
        return rows
    found = table[rows.astype(jnp.int32)]  # [B, T, n, d]
    return found.reshape(*rows.shape[:-1], -1)  # [B, T, n d]


def bounds(data: TaskData, rho: float) -> tuple[jax.Array, jax.Array]:
    """What plans of a task are clipped to.

    Args:
        data: one task's.
        rho: the bound of codes.

    Returns:
        Lowest and highest values, [C + A] each, states then actions: -rho and rho where there are
        codes, else the smallest and largest of the data's rows.
    """
    lows, highs = [], []
    for rows, table in ((data.states, data.state_table), (data.actions, data.action_table)):
        if table is None:
            lows.append(rows.min(0))
            highs.append(rows.max(0))
        else:
            channels = rows.shape[-1] * table.shape[-1]
            lows.append(jnp.full(channels, -rho))
            highs.append(jnp.full(channels, rho))
    return jnp.concatenate(lows), jnp.concatenate(highs)


def last_windows(data: TaskData, share: float, least: int) -> TaskData:
    """What is kept of a task for replay; on the host, since sizes depend on the data.

    Args:
        data: one task's.
        share: of its windows, the last ones.
        least: windows that are kept at least, or all where there are fewer.

    Returns:
        The task's data without other windows and the rows that only they see.
    """
    count = int(data.count)
    kept = min(count, max(whole_part(share, count), least))
    part = slice(count - kept, count)
    first = int(data.starts[part].min())
    return data._replace(
        states=data.states[first:],
        actions=data.actions[first:],
        starts=data.starts[part] - first,
        returns=data.returns[part],
        count=jnp.int32(kept),
        task=data.task[part],
    )


def stack_tasks(tasks: Sequence[TaskData]) -> TaskData:
    """Puts several tasks side by side.

    Args:
        tasks: each one's data.

    Returns:
        Every leaf with a leading axis of tasks, padded with zeros to the longest.

    Raises:
        ValueError: tasks whose rows are not of one kind and width.
    """
    kinds = {str(jax.tree.map(lambda leaf: (leaf.shape[1:], leaf.dtype), x)) for x in tasks}
    if len(kinds) > 1:
        raise ValueError(f"tasks: expected rows of one kind and width, got {sorted(kinds)}")

    def stack(*leaves: jax.Array) -> jax.Array:
        longest = max(leaf.shape[0] if leaf.ndim else 0 for leaf in leaves)
        padded = [
            jnp.pad(leaf, ((0, longest - leaf.shape[0]), *[(0, 0)] * (leaf.ndim - 1)))
            if leaf.ndim
            else leaf
            for leaf in leaves
        ]
        return jnp.stack(padded)

    return jax.tree.map(stack, *tasks)


def join_tasks(tasks: Sequence[TaskData]) -> TaskData:
    """Makes one pool of several tasks' windows (multitask learning); on the host.

    Args:
        tasks: each one's data.

    Returns:
        Their rows and windows one after another, codes numbered on from task to task.

    Raises:
        ValueError: more codes in all than int16 can number.
    """
    lengths = [x.states.shape[0] for x in tasks]
    shift = np.cumsum([0, *lengths[:-1]])
    starts = [x.starts[: int(x.count)] + int(s) for x, s in zip(tasks, shift, strict=True)]
    states, state_table = _joined([(x.states, x.state_table) for x in tasks])
    actions, action_table = _joined([(x.actions, x.action_table) for x in tasks])
    joined = jnp.concatenate(starts)
    return TaskData(
        states=states,
        actions=actions,
        state_table=state_table,
        action_table=action_table,
        starts=joined,
        returns=jnp.concatenate([x.returns[: int(x.count)] for x in tasks]),
        count=jnp.int32(joined.shape[0]),
        task=jnp.concatenate([x.task[: int(x.count)] for x in tasks]),
    )


def _joined(
    parts: Sequence[tuple[jax.Array, jax.Array | None]],
) -> tuple[jax.Array, jax.Array | None]:
    """Rows one after another; codes are numbered on through the tables."""
    rows, tables, before = [], [], 0
    in_all = sum(table.shape[0] for _, table in parts if table is not None)
    if in_all > LARGEST_CODE + 1:
        raise ValueError(f"tasks: expected at most {LARGEST_CODE + 1} codes in all, got {in_all}")
    for codes, table in parts:
        if table is not None:
            codes = codes + jnp.int16(before)
            tables.append(table)
            before += table.shape[0]
        rows.append(codes)
    return jnp.concatenate(rows), jnp.concatenate(tables) if tables else None
