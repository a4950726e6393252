"""Offline data as reinforcement learning needs it: rewards, what came next, and returns.

    G_t = r_t + gamma G_{t+1} within an episode, 0 after it

Rows cut off by a time limit are kept: their next state is known, and they bootstrap.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.data.offline import FlatDataset
from jaxmethods.obd.types import Norm


class Transitions(NamedTuple):
    """L transitions on the device, states normalised by `norm`."""

    states: jax.Array
    """[L, S]"""
    actions: jax.Array
    """[L, A] in [-1, 1]."""
    rewards: jax.Array
    """[L] as the simulator gave them."""
    next_states: jax.Array
    """[L, S]"""
    terminals: jax.Array
    """[L] float: 1 where the episode failed, so that nothing follows; 0 at a time limit."""
    returns: jax.Array
    """[L]: discounted Monte-Carlo return from here to the end of the recorded episode."""
    episode_returns: jax.Array
    """[L]: undiscounted return of the episode the row belongs to."""
    norm: Norm


def make_transitions(flat: FlatDataset, norm: Norm, discount: float = 0.99) -> Transitions:
    """Builds transitions of flat arrays, whole episodes one after another.

    Args:
        flat: without next observations the next row's observation is taken, and rows that have
            none (those cut off by a time limit, the last one) are left out.
        norm: what the states are normalised with.
        discount: of `Transitions.returns`.
    """
    ends = flat.terminals | flat.timeouts
    following = flat.next_observations
    keep = np.ones(len(ends), bool)
    if following is None:
        following = np.roll(flat.observations, -1, axis=0)
        keep = flat.terminals | ~ends
        keep[-1] = flat.terminals[-1]
    columns: tuple[Any, ...] = (
        norm.apply(jnp.asarray(flat.observations)),
        flat.actions,
        flat.rewards,
        norm.apply(jnp.asarray(following)),
        flat.terminals,
        returns_to_go(flat.rewards, ends, discount),
        whole_returns(flat.rewards, ends),
    )
    kept: list[Any] = [jnp.asarray(column[keep], jnp.float32) for column in columns]
    return Transitions(*kept, norm=norm)


def returns_to_go(rewards: Any, ends: Any, discount: Any) -> jax.Array:
    """G_t [L] of rewards [L] whose episodes end where `ends` [L] is true."""

    def back(after: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        reward, end = row
        returned = reward + discount * jnp.where(end, 0.0, after)
        return returned, returned

    rows = (jnp.asarray(rewards), jnp.asarray(ends))
    return jax.lax.scan(back, jnp.zeros((), rows[0].dtype), rows, reverse=True)[1]


def whole_returns(rewards: Any, ends: Any) -> jax.Array:
    """[L]: for every row, the sum of its episode's rewards."""
    forward = returns_to_go(rewards, ends, 1.0)
    starts = jnp.concatenate([jnp.ones(1, bool), jnp.asarray(ends)[:-1]])

    def carry(total: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        start, whole = row
        total = jnp.where(start, whole, total)
        return total, total

    return jax.lax.scan(carry, jnp.zeros((), forward.dtype), (starts, forward))[1]


def minibatch(key: jax.Array, data: Transitions, size: int) -> Transitions:
    """`size` rows drawn uniformly with replacement, on the device."""
    rows = jax.random.randint(key, (size,), 0, len(data.rewards))
    drawn: list[Any] = [column[rows] for column in data[:-1]]
    return Transitions(*drawn, norm=data.norm)


def return_scale(data: Transitions, length: float = 1000.0) -> jax.Array:
    """[]: the factor that makes the best and worst episode's returns differ by `length`.

    How IQL's code scales the rewards of locomotion tasks.
    """
    spread = data.episode_returns.max() - data.episode_returns.min()
    return length / jnp.maximum(spread, 1e-6)
