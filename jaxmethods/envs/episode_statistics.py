"""Lengths and returns of episodes that go on from roll-out to roll-out."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.envs.rollout import Trajectory
from jaxmethods.envs.team.types import one_more


class EpisodeStatistics(NamedTuple):
    """Running and last completed episode of each of R environments."""

    running_length: jax.Array
    """[R] int32: steps of the episode under way."""
    running_return: jax.Array
    """[R] float32: its team-mean reward so far."""
    length: jax.Array
    """[R] float32: of the last completed episode (0 before the first)."""
    returned: jax.Array
    """[R] float32: team-mean return of the last completed episode."""


def follow_episodes(episodes: EpisodeStatistics, trajectory: Trajectory) -> EpisodeStatistics:
    """Carries episode lengths and returns through a roll-out."""

    def one_step(
        now: EpisodeStatistics, inputs: tuple[jax.Array, jax.Array]
    ) -> tuple[EpisodeStatistics, None]:
        reward, last = inputs  # [R], [R]
        length, returned = one_more(now.running_length), now.running_return + reward
        return EpisodeStatistics(
            jnp.where(last, 0, length),
            jnp.where(last, 0.0, returned),
            jnp.where(last, length.astype(jnp.float32), now.length),
            jnp.where(last, returned, now.returned),
        ), None

    return jax.lax.scan(one_step, episodes, (trajectory.reward.mean(-1), trajectory.last))[0]
