"""Three links on a plane with a motor in every joint: reach a target with the tip."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jumanji import specs
from jumanji.env import Environment
from jumanji.types import StepType, TimeStep, restart

from jaxmethods.envs import arguments
from jaxmethods.envs.control.arm.types import State

LENGTHS = (0.5, 0.35, 0.25)
SECONDS = 0.05
STRENGTH = 8.0
"""Angular acceleration of a full torque, rad/s^2."""
FRICTION = 1.0
MAX_VELOCITY = 6.0


class Arm(Environment[Any, specs.BoundedArray, jax.Array]):
    """The tip of a chain of three links is brought to a target; links don't feel each other's mass.

    - observation [13] float32: cosines [3] and sines [3] of the links' directions on the plane,
      joint velocities [3], target [2], target minus tip [2].
    - action [3] float32 in [-1, 1]: the torques; clipped.
    - reward [] float32 below 1: 1 / (1 + 5 distance to the target) - 0.01 |action|^2, of the state
      before the step.
    - termination: never; `time_limit` truncates (discount 1).

    A step is 0.05 s of semi-implicit Euler. Episodes begin at rest with any angles; targets are
    between 0.3 and 1 from the foot.
    """

    def __init__(self, time_limit: int = 100) -> None:
        """Builds the environment; `time_limit` is in steps, at least 1."""
        self.time_limit = arguments.check_integer("time_limit", time_limit, 1)
        super().__init__()

    def __repr__(self) -> str:
        return f"Arm(time_limit={self.time_limit})"

    def reset(self, key: jax.Array) -> tuple[State, TimeStep[jax.Array]]:
        """Begins an episode from a [] typed random key."""
        key, angle_key, direction_key, distance_key = jax.random.split(key, 4)
        angles = jax.random.uniform(angle_key, (3,), minval=-jnp.pi, maxval=jnp.pi)
        direction = jax.random.uniform(direction_key, (), minval=-jnp.pi, maxval=jnp.pi)
        distance = jax.random.uniform(distance_key, (), minval=0.3, maxval=1.0)
        target = distance * jnp.stack([jnp.cos(direction), jnp.sin(direction)])
        state = State(angles, jnp.zeros(3), target, jnp.zeros((), jnp.int32), key)
        return state, restart(observe(state), shape=(), dtype=jnp.float32)

    def step(self, state: State, action: jax.Array) -> tuple[State, TimeStep[jax.Array]]:
        """Takes one step with `action` [3]."""
        torque = jnp.clip(action, -1.0, 1.0)
        distance = jnp.linalg.norm(state.target - joints(state.angles)[-1])
        reward = 1.0 / (1.0 + 5.0 * distance) - 0.01 * jnp.square(torque).sum()
        change = STRENGTH * torque - FRICTION * state.velocities
        velocities = jnp.clip(state.velocities + SECONDS * change, -MAX_VELOCITY, MAX_VELOCITY)
        angles = (state.angles + SECONDS * velocities + jnp.pi) % (2 * jnp.pi) - jnp.pi
        after = State(angles, velocities, state.target, state.step_count + 1, state.key)
        return after, TimeStep(
            step_type=jnp.where(after.step_count >= self.time_limit, StepType.LAST, StepType.MID),
            reward=jnp.asarray(reward, jnp.float32),
            discount=jnp.ones((), jnp.float32),
            observation=observe(after),
            extras={},
        )

    @cached_property
    def observation_spec(self) -> specs.BoundedArray:
        """[13] float32."""
        bound = jnp.array([1.0] * 6 + [MAX_VELOCITY] * 3 + [1.0] * 2 + [2.1] * 2, jnp.float32)
        return specs.BoundedArray((13,), jnp.float32, -bound, bound, name="observation")

    @cached_property
    def action_spec(self) -> specs.BoundedArray:
        """[3] float32 in [-1, 1]."""
        return specs.BoundedArray((3,), jnp.float32, -1.0, 1.0, name="action")


def joints(angles: jax.Array) -> jax.Array:
    """Finds where the links of a chain end whose foot is at 0.

    Args:
        angles: [3] of the joints in rad, each relative to the link before.

    Returns:
        Points [3, 2] in the angles' type; the last is the tip.
    """
    directions = jnp.cumsum(angles)
    links = jnp.stack([jnp.cos(directions), jnp.sin(directions)], -1)
    return jnp.cumsum(links * jnp.asarray(LENGTHS)[:, None], 0)


def observe(state: State) -> jax.Array:
    """[13]: directions of the links, velocities, target, and the way to it."""
    directions = jnp.cumsum(state.angles)
    way = state.target - joints(state.angles)[-1]
    parts = [jnp.cos(directions), jnp.sin(directions), state.velocities, state.target, way]
    return jnp.concatenate(parts)
