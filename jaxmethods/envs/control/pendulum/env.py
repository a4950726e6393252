"""The classic torque-limited pendulum, with its cost turned into a reward between 0 and 1."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jumanji import specs
from jumanji.env import Environment
from jumanji.types import StepType, TimeStep, restart

from jaxmethods.envs import arguments
from jaxmethods.envs.control.pendulum.types import State

GRAVITY = 10.0
MAX_TORQUE = 2.0
MAX_VELOCITY = 8.0
SECONDS = 0.05
MAX_COST = jnp.pi**2 + 0.1 * MAX_VELOCITY**2 + 0.001 * MAX_TORQUE**2


class Pendulum(Environment[Any, specs.BoundedArray, jax.Array]):
    """A rod of mass and length 1 hangs from a motor that cannot lift it without a swing.

    - observation [3] float32: cos and sin of the angle (0 is upright), angular velocity in rad/s.
    - action [1] float32 in [-1, 1]: the torque divided by 2 N m; clipped.
    - reward [] float32 in [0, 1]: 1 - (angle^2 + 0.1 velocity^2 + 0.001 torque^2) / 16.27, the
      cost of the classic problem scaled to its range, of the state before the step.
    - termination: never; `time_limit` truncates (discount 1).

    A step is 0.05 s of semi-implicit Euler. Episodes begin at any angle, velocity in [-1, 1].

    ```python
    env = Pendulum()
    state, timestep = jax.jit(env.reset)(jax.random.key(0))
    state, timestep = jax.jit(env.step)(state, env.action_spec.generate_value())
    ```
    """

    def __init__(self, time_limit: int = 200) -> None:
        """Builds the environment; `time_limit` is in steps, at least 1."""
        self.time_limit = arguments.check_integer("time_limit", time_limit, 1)
        super().__init__()

    def __repr__(self) -> str:
        return f"Pendulum(time_limit={self.time_limit})"

    def reset(self, key: jax.Array) -> tuple[State, TimeStep[jax.Array]]:
        """Begins an episode from a [] typed random key."""
        key, angle_key, velocity_key = jax.random.split(key, 3)
        angle = jax.random.uniform(angle_key, (), minval=-jnp.pi, maxval=jnp.pi)
        velocity = jax.random.uniform(velocity_key, (), minval=-1.0, maxval=1.0)
        state = State(angle, velocity, jnp.zeros((), jnp.int32), key)
        return state, restart(observe(state), shape=(), dtype=jnp.float32)

    def step(self, state: State, action: jax.Array) -> tuple[State, TimeStep[jax.Array]]:
        """Takes one step with `action` [1]."""
        torque = MAX_TORQUE * jnp.clip(action[0], -1.0, 1.0)
        cost = state.angle**2 + 0.1 * state.velocity**2 + 0.001 * torque**2
        acceleration = 1.5 * GRAVITY * jnp.sin(state.angle) + 3.0 * torque
        velocity = jnp.clip(state.velocity + SECONDS * acceleration, -MAX_VELOCITY, MAX_VELOCITY)
        angle = _wrap(state.angle + SECONDS * velocity)
        after = State(angle, velocity, state.step_count + 1, state.key)
        return after, TimeStep(
            step_type=jnp.where(after.step_count >= self.time_limit, StepType.LAST, StepType.MID),
            reward=jnp.asarray(1.0 - cost / MAX_COST, jnp.float32),
            discount=jnp.ones((), jnp.float32),
            observation=observe(after),
            extras={},
        )

    @cached_property
    def observation_spec(self) -> specs.BoundedArray:
        """[3] float32."""
        bound = jnp.array([1.0, 1.0, MAX_VELOCITY], jnp.float32)
        return specs.BoundedArray((3,), jnp.float32, -bound, bound, name="observation")

    @cached_property
    def action_spec(self) -> specs.BoundedArray:
        """[1] float32 in [-1, 1]."""
        return specs.BoundedArray((1,), jnp.float32, -1.0, 1.0, name="action")


def observe(state: State) -> jax.Array:
    """[3]: cos, sin and velocity of a state."""
    return jnp.stack([jnp.cos(state.angle), jnp.sin(state.angle), state.velocity])


def _wrap(angle: jax.Array) -> jax.Array:
    return (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi
