"""A jumanji environment as a `TeamEnvironment`.

The wrapped environment gets a time limit that no episode reaches, so that its own last time
steps are terminations; truncation is counted here, with discount 1.
"""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jumanji.env import Environment
from jumanji.types import TimeStep
from jumanji.viewer import Viewer

from jaxmethods.envs.team.environment import TeamEnvironment
from jaxmethods.envs.team.types import Observation, one_more

NEVER = 2**31 - 1
"""A time limit that is not reached: the largest int32."""

REWARDS = ("team", "individual")


class State(NamedTuple):
    """State of an adapted environment."""

    wrapped: Any
    """The wrapped environment's own state."""
    success: jax.Array
    """[] bool: the episode has been a success by now."""
    step_count: jax.Array
    """[] int32: steps since the episode began."""

    @property
    def key(self) -> jax.Array:
        """[] random key, the source of the next episode at automatic reset."""
        return self.wrapped.key


class Adapted(TeamEnvironment):
    """A wrapped jumanji environment with the library's observation, reward and discount.

    Subclasses say what agents see (`_view`) and when an episode is a success (`_success`);
    rewards of the wrapped environment, a scalar or [N], are summed for everybody, or with
    reward "individual" left to each agent.
    """

    def __init__(
        self,
        wrapped: Environment[Any, Any, Any],
        *,
        reward: str = "team",
        episode_cap: int,
        **spaces: Any,
    ) -> None:
        """Wraps an environment.

        Args:
            wrapped: an environment without a time limit of its own (see `NEVER`).
            reward: one of `REWARDS`, already checked.
            episode_cap: the published limit on the length of an episode.
            spaces: of `TeamEnvironment`'s constructor.
        """
        self.wrapped: Any = wrapped
        self.reward = reward
        self._episode_cap = episode_cap
        super().__init__(**spaces)

    @property
    def episode_cap(self) -> int:
        """Steps an evaluation episode may take: the published time limit."""
        return self._episode_cap

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_agents={self.num_agents}, time_limit={self.time_limit})"

    def reset(self, key: jax.Array) -> tuple[State, TimeStep[Observation]]:
        """Begins an episode from a [] typed random key."""
        wrapped, timestep = self.wrapped.reset(key)
        state = State(strong(wrapped), jnp.zeros((), bool), jnp.zeros((), jnp.int32))
        return state, self._first(self._observe(state, timestep), self._extras(state))

    def step(self, state: State, action: jax.Array) -> tuple[State, TimeStep[Observation]]:
        """Takes one step with `action`, as `action_spec` describes it."""
        wrapped, timestep = self.wrapped.step(state.wrapped, action)
        success = state.success | self._success(wrapped, timestep)
        wrapped = strong(wrapped, like=state.wrapped)
        state = State(wrapped, success, one_more(state.step_count))
        return state, self._next(
            self._observe(state, timestep),
            reward=self._per_agent(timestep.reward),
            terminated=self._terminated(wrapped, timestep),
            extras=self._extras(state),
        )

    @abc.abstractmethod
    def _view(self, wrapped: Any, observation: Any) -> jax.Array:
        """[N, D]: what the agents see of the wrapped environment's state and observation."""

    @abc.abstractmethod
    def _success(self, wrapped: Any, timestep: TimeStep[Any]) -> jax.Array:
        """[] bool: whether the step that led here makes the episode a success."""

    def _terminated(self, wrapped: Any, timestep: TimeStep[Any]) -> jax.Array:
        """[] bool: whether the wrapped environment ended the episode."""
        del wrapped
        return jnp.asarray(timestep.last())

    def _mask(self, observation: Any) -> jax.Array:
        """[N, A] bool."""
        return observation.action_mask

    def _extras(self, state: State) -> dict[str, jax.Array]:
        return {"success": state.success}

    def _observe(self, state: State, timestep: TimeStep[Any]) -> Observation:
        view = self._view(state.wrapped, timestep.observation).astype(self._view_dtype)
        return Observation(view, self._mask(timestep.observation), state.step_count)

    def _per_agent(self, reward: jax.Array) -> jax.Array:
        """[N] from a scalar or [N]."""
        given = reward if self.reward == "individual" else jnp.sum(reward)
        return jnp.broadcast_to(given, (self.num_agents,))

    def _drawn(self, wrapped: Any) -> Any:
        """What the wrapped environment's viewer draws of its state."""
        return wrapped

    @abc.abstractmethod
    def _wrapped_viewer(self) -> Viewer:
        """The wrapped environment's viewer with render_mode "rgb_array"."""

    def make_viewer(self) -> Viewer:
        """The wrapped environment's viewer; its figure is first built here."""
        from jaxmethods.envs.adapters.viewer import AdaptedViewer

        return AdaptedViewer(self._wrapped_viewer(), self._drawn)


def strong(state: Any, like: Any = None) -> Any:
    """The same arrays without weak types, which would have a step traced twice.

    Args:
        state: any pytree of arrays.
        like: the state before, whose types they keep: with jax_enable_x64 what an environment makes
            of 32 bits at reset may be of 64 after a step, and couldn't be carried.

    Returns:
        `state` in strong types.
    """

    def strengthen(leaf: Any, before: Any) -> jax.Array:
        leaf = jnp.asarray(leaf)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        return leaf.astype(jnp.asarray(before).dtype)

    return jax.tree.map(strengthen, state, state if like is None else like)
