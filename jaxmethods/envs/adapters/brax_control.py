"""Brax's locomotion as a control environment: the whole evaluation is one JAX program.

The tasks share names with MuJoCo's, but physics, observations and rewards are brax's own: scores
are comparable with other brax scores only, and D4RL's normalization doesn't apply to them.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jumanji import specs
from jumanji.env import Environment
from jumanji.types import StepType, TimeStep, restart

from jaxmethods.envs import arguments
from jaxmethods.errors import first_line, import_extra


class State(NamedTuple):
    """State of an adapted brax environment."""

    wrapped: Any
    """Brax's own state."""
    step_count: jax.Array
    """[] int32: steps since the episode began."""
    key: jax.Array
    """[] typed random key, the source of the next episode at automatic reset."""


class BraxControl(Environment[Any, specs.BoundedArray, jax.Array]):
    """One of brax's environments.

    - observation [S] float32, action [A] float32 in [-1, 1], reward [] float32: brax's.
    - termination: brax's `done` (discount 0); `time_limit` truncates (discount 1).
    """

    def __init__(self, task: str, time_limit: int = 1000, **options: Any) -> None:
        """Builds the environment.

        Args:
            task: brax's name, for instance "hopper", "halfcheetah", "walker2d".
            time_limit: steps, at least 1.
            options: of brax's constructor, for instance `backend`.

        Raises:
            ValueError: brax has no such task, or the task no such option.
            MissingExtraError: brax is not installed.
        """
        envs = import_extra("brax.envs", "brax")
        known = sorted(envs._envs)
        self.task = arguments.check_choice("task", task, known)
        self.time_limit = arguments.check_integer("time_limit", time_limit, 1)
        try:
            self.wrapped: Any = envs.get_environment(task, **options)
        except TypeError as error:  # brax hands options on until one doesn't know them
            raise ValueError(f"{task}: {first_line(error)}") from error
        super().__init__()

    def __repr__(self) -> str:
        return f"BraxControl({self.task!r}, time_limit={self.time_limit})"

    def reset(self, key: jax.Array) -> tuple[State, TimeStep[jax.Array]]:
        """Begins an episode from a [] typed random key."""
        key, draw = jax.random.split(key)
        # Brax knows raw keys only.
        wrapped = self.wrapped.reset(jax.random.key_data(draw))
        first = restart(wrapped.obs, shape=(), dtype=jnp.float32)
        return State(wrapped, jnp.zeros((), jnp.int32), key), first

    def step(self, state: State, action: jax.Array) -> tuple[State, TimeStep[jax.Array]]:
        """Takes one step with `action` [A]."""
        wrapped = self.wrapped.step(state.wrapped, jnp.clip(action, -1.0, 1.0))
        count = state.step_count + 1
        failed = wrapped.done > 0
        last = failed | (count >= self.time_limit)
        return State(wrapped, count, state.key), TimeStep(
            step_type=jnp.where(last, StepType.LAST, StepType.MID),
            reward=jnp.asarray(wrapped.reward, jnp.float32),
            discount=jnp.where(failed, 0.0, 1.0),
            observation=wrapped.obs,
            extras={},
        )

    @cached_property
    def observation_spec(self) -> specs.Array:
        """[S] float32."""
        return specs.Array((self.wrapped.observation_size,), jnp.float32, name="observation")

    @cached_property
    def action_spec(self) -> specs.BoundedArray:
        """[A] float32 in [-1, 1]."""
        shape = (self.wrapped.action_size,)
        return specs.BoundedArray(shape, jnp.float32, -1.0, 1.0, name="action")
