"""Offline data as reinforcement learning needs it: rewards, what came next, and returns.

    G_t = r_t + gamma G_{t+1} within an episode, 0 after it

Rows cut off by a time limit are kept: their next state is known, and they bootstrap. Sums keep
what float32 would drop: an episode of a million rewards of 0.1 returns 100,000, not 100,958.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.data.offline import FlatDataset, episode_ends
from jaxmethods.errors import DataError
from jaxmethods.numerics.precision import two_sum, wide
from jaxmethods.offline_rl.types import Norm


class Transitions(NamedTuple):
    """L transitions on the device, states normalized by `norm`."""

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
            none (those cut off by a time limit, the last one) are left out. So are those of them
            whose next observation is the next row's: it was made in this way, of another episode.
        norm: what the states are normalized with.
        discount: of `Transitions.returns`.

    Raises:
        DataError: no row is left, or the rows are in no order (see `episode_ends`).
    """
    ends = episode_ends(flat)
    following = flat.next_observations
    keep = np.ones(len(ends), bool)
    shifted = np.roll(flat.observations, -1, axis=0)
    cut = ends & ~flat.terminals
    cut[-1] = not flat.terminals[-1]
    if following is not None:
        keep = ~(cut & np.all(following == shifted, axis=1))
    if following is None or not keep.any():
        following, keep = shifted, ~cut
        if not keep.any():
            raise DataError(
                "data: next_observations: missing, and no row of an episode is followed by another"
            )
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
    """G_t [L] of rewards [L] whose episodes end where `ends` [L] is true; float32 at least."""

    def back(
        after: tuple[jax.Array, jax.Array], row: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        reward, end = row
        sum_after, rest_after = (jnp.where(end, 0.0, discount * part) for part in after)
        returned, rest = two_sum(reward, sum_after)
        returned, rest = two_sum(returned, rest + rest_after)
        return (returned, rest), returned

    rewards = wide(rewards)
    zero = jnp.zeros((), rewards.dtype)
    return jax.lax.scan(back, (zero, zero), (rewards, jnp.asarray(ends)), reverse=True)[1]


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


EQUAL_RETURNS = 1e-5
"""Spread of the episodes' returns, relative to the largest, that is taken for rounding."""


def return_scale(data: Transitions, length: float = 1000.0) -> jax.Array:
    """[]: the factor that makes the best and worst episode's returns differ by `length`.

    How IQL's code scales the rewards of locomotion tasks. It is 1 where all returns are equal:
    there is nothing to span.
    """
    best, worst = data.episode_returns.max(), data.episode_returns.min()
    spread = best - worst
    rounding = EQUAL_RETURNS * jnp.maximum(jnp.abs(best), jnp.abs(worst))
    equal = spread <= jnp.maximum(rounding, jnp.finfo(spread.dtype).tiny * length)
    return jnp.where(equal, 1.0, length / jnp.where(equal, 1.0, spread))
