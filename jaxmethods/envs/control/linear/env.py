"""Linear systems s' = A s + B a of any sizes, to be kept near zero."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jumanji import specs
from jumanji.env import Environment
from jumanji.types import StepType, TimeStep, restart

from jaxmethods.envs import arguments
from jaxmethods.envs.control.linear.types import State

RADIUS = 1.02
"""Largest absolute eigenvalue of A: left alone, the state slowly grows."""
BOUND = 10.0
"""States are kept within it."""


class Linear(Environment[Any, specs.BoundedArray, jax.Array]):
    """A random linear system s' = A s + B a, the same for the same sizes and number.

    - observation [states] float32: s.
    - action [actions] float32 in [-1, 1]; clipped.
    - reward [] float32: -|s|^2 of the state before the step.
    - termination: never; `time_limit` truncates (discount 1).

    A is a random rotation scaled by 1.02 and B has rows of norm 0.3; s begins as N(0, I / 4) and
    stays within +-10.
    """

    def __init__(
        self, states: int = 3, actions: int = 1, number: int = 0, time_limit: int = 50
    ) -> None:
        """Draws a system.

        Args:
            states: size of s.
            actions: size of a.
            number: seeds A and B, so that systems of the same sizes differ; at least 0.
            time_limit: in steps, at least 1.
        """
        self.states = arguments.check_integer("states", states, 1)
        self.actions = arguments.check_integer("actions", actions, 1)
        self.number = arguments.check_integer("number", number, 0)
        self.time_limit = arguments.check_integer("time_limit", time_limit, 1)
        draw = np.random.default_rng((states, actions, number))
        rotation, _ = np.linalg.qr(draw.normal(size=(states, states)))
        inputs = draw.normal(size=(states, actions))
        inputs *= 0.3 / np.linalg.norm(inputs, axis=1, keepdims=True)
        self.dynamics = jnp.asarray(RADIUS * rotation, jnp.float32)
        """[states, states] A"""
        self.inputs = jnp.asarray(inputs, jnp.float32)
        """[states, actions] B"""
        super().__init__()

    def __repr__(self) -> str:
        return (
            f"Linear(states={self.states}, actions={self.actions}, number={self.number}, "
            f"time_limit={self.time_limit})"
        )

    def reset(self, key: jax.Array) -> tuple[State, TimeStep[jax.Array]]:
        """Begins an episode from a [] typed random key."""
        key, place_key = jax.random.split(key)
        place = 0.5 * jax.random.normal(place_key, (self.states,))
        state = State(place, jnp.zeros((), jnp.int32), key)
        return state, restart(place, shape=(), dtype=jnp.float32)

    def step(self, state: State, action: jax.Array) -> tuple[State, TimeStep[jax.Array]]:
        """Takes one step with `action` [actions]."""
        moved = self.dynamics @ state.place + self.inputs @ jnp.clip(action, -1.0, 1.0)
        after = State(jnp.clip(moved, -BOUND, BOUND), state.step_count + 1, state.key)
        return after, TimeStep(
            step_type=jnp.where(after.step_count >= self.time_limit, StepType.LAST, StepType.MID),
            reward=-jnp.square(state.place).sum(),
            discount=jnp.ones((), jnp.float32),
            observation=after.place,
            extras={},
        )

    @cached_property
    def observation_spec(self) -> specs.BoundedArray:
        """[states] float32."""
        return specs.BoundedArray((self.states,), jnp.float32, -BOUND, BOUND, name="observation")

    @cached_property
    def action_spec(self) -> specs.BoundedArray:
        """[actions] float32 in [-1, 1]."""
        return specs.BoundedArray((self.actions,), jnp.float32, -1.0, 1.0, name="action")
