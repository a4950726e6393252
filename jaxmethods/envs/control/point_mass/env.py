"""A puck with two motors on a plane: a double integrator with drag that seeks a goal."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jumanji import specs
from jumanji.env import Environment
from jumanji.types import StepType, TimeStep, restart

from jaxmethods.envs import arguments
from jaxmethods.envs.control.point_mass.types import State

SECONDS = 0.1
DRAG = 0.3
BOUND = 2.0
"""Walls on all four sides stop the puck."""


class PointMass(Environment[Any, specs.BoundedArray, jax.Array]):
    """A puck of mass 1 is pushed to a goal on the plane, against drag.

    - observation [6] float32: position [2], velocity [2], goal minus position [2].
    - action [2] float32 in [-1, 1]: the force; clipped.
    - reward [] float32 below 1: 1 / (1 + 4 distance to the goal) - 0.01 |action|^2, of the
      state before the step.
    - termination: never; `time_limit` truncates (discount 1).

    A step is 0.1 s of semi-implicit Euler; walls are at +-2. Episodes begin at rest, puck and goal
    anywhere in [-1, 1]^2.
    """

    def __init__(self, time_limit: int = 100) -> None:
        """Builds the environment; `time_limit` is in steps, at least 1."""
        self.time_limit = arguments.check_integer("time_limit", time_limit, 1)
        super().__init__()

    def __repr__(self) -> str:
        return f"PointMass(time_limit={self.time_limit})"

    def reset(self, key: jax.Array) -> tuple[State, TimeStep[jax.Array]]:
        """Begins an episode from a [] typed random key."""
        key, position_key, goal_key = jax.random.split(key, 3)
        position = jax.random.uniform(position_key, (2,), minval=-1.0, maxval=1.0)
        goal = jax.random.uniform(goal_key, (2,), minval=-1.0, maxval=1.0)
        state = State(position, jnp.zeros(2), goal, jnp.zeros((), jnp.int32), key)
        return state, restart(observe(state), shape=(), dtype=jnp.float32)

    def step(self, state: State, action: jax.Array) -> tuple[State, TimeStep[jax.Array]]:
        """Takes one step with `action` [2]."""
        force = jnp.clip(action, -1.0, 1.0)
        distance = jnp.linalg.norm(state.goal - state.position)
        reward = 1.0 / (1.0 + 4.0 * distance) - 0.01 * jnp.square(force).sum()
        velocity = state.velocity + SECONDS * (force - DRAG * state.velocity)
        position = state.position + SECONDS * velocity
        inside = jnp.clip(position, -BOUND, BOUND)
        velocity = jnp.where(position == inside, velocity, 0.0)
        after = State(inside, velocity, state.goal, state.step_count + 1, state.key)
        return after, TimeStep(
            step_type=jnp.where(after.step_count >= self.time_limit, StepType.LAST, StepType.MID),
            reward=jnp.asarray(reward, jnp.float32),
            discount=jnp.ones((), jnp.float32),
            observation=observe(after),
            extras={},
        )

    @cached_property
    def observation_spec(self) -> specs.BoundedArray:
        """[6] float32."""
        bound = jnp.array([BOUND] * 2 + [1.0 / DRAG] * 2 + [BOUND + 1.0] * 2, jnp.float32)
        return specs.BoundedArray((6,), jnp.float32, -bound, bound, name="observation")

    @cached_property
    def action_spec(self) -> specs.BoundedArray:
        """[2] float32 in [-1, 1]."""
        return specs.BoundedArray((2,), jnp.float32, -1.0, 1.0, name="action")


def observe(state: State) -> jax.Array:
    """[6]: position, velocity, and the way to the goal."""
    return jnp.concatenate([state.position, state.velocity, state.goal - state.position])
