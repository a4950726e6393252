"""A jumanji environment of a team: N agents, A actions each, one view each."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jumanji import specs
from jumanji.env import Environment
from jumanji.types import StepType, TimeStep, restart
from jumanji.viewer import Viewer

from jaxmethods.envs.arguments import check_choice
from jaxmethods.envs.team.types import Observation


class TeamEnvironment(Environment[Any, specs.BoundedArray, Observation]):
    """Specs, time steps and drawing that all environments have in common.

    Observations are `Observation`, rewards [N] float32 and discounts [N] float32: 0 when the
    episode terminates, and for an agent of whose rewards none that follows is its own (its car
    left the road and the next one takes its slot) although the episode goes on; 1 otherwise,
    also when `time_limit` truncates the episode. `extras` has the same entries at reset and at
    every step, so that time steps can be carried through `lax.scan`.
    """

    presets: ClassVar[Mapping[str, dict[str, Any]]]
    """Constructor arguments of the published versions of the environment."""
    continuous: ClassVar[bool] = False
    """Whether an action is `num_actions` numbers in [-1, 1] instead of one of as many choices."""

    def __init__(
        self,
        *,
        num_agents: int,
        num_actions: int,
        observation_size: int,
        view_bounds: tuple[float, float],
        view_dtype: Any,
        time_limit: int | None,
        viewer: Viewer | None,
    ) -> None:
        if viewer is not None and not isinstance(viewer, Viewer):
            raise ValueError(f"viewer must be a jumanji.viewer.Viewer, got {viewer!r}")
        self.num_agents = num_agents
        self.num_actions = num_actions
        self.observation_size = observation_size
        self.time_limit = time_limit
        self._view_bounds = view_bounds
        self._view_dtype = view_dtype
        self._given_viewer = viewer
        super().__init__()

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """Builds one of `presets`; `overrides` are constructor arguments.

        Presets leave `time_limit` at its default: the environments of this library are trained
        without a limit and evaluated with `episode_cap`, adapted ones have that as their limit.
        """
        return cls(**(cls.presets[check_choice("preset", name, cls.presets)] | overrides))

    @property
    @abc.abstractmethod
    def episode_cap(self) -> int:
        """Steps that an evaluation episode may take."""

    @abc.abstractmethod
    def make_viewer(self) -> Viewer:
        """Builds the viewer; called when something is drawn for the first time."""

    @cached_property
    def viewer(self) -> Any:
        """The viewer given at construction, or the environment's own."""
        return self._given_viewer or self.make_viewer()

    @cached_property
    def observation_spec(self) -> specs.Spec[Observation]:
        """`Observation` of agents_view [N, D], action_mask [N, A] bool and step_count [] int32."""
        longest = np.iinfo(np.int32).max if self.time_limit is None else self.time_limit
        view = (self.num_agents, self.observation_size)
        mask = (self.num_agents, self.num_actions)
        return specs.Spec(
            Observation,
            "ObservationSpec",
            agents_view=specs.BoundedArray(
                view, self._view_dtype, *self._view_bounds, name="agents_view"
            ),
            action_mask=specs.BoundedArray(mask, bool, False, True, name="action_mask"),
            step_count=specs.BoundedArray((), jnp.int32, 0, longest, name="step_count"),
        )

    @cached_property
    def action_spec(self) -> specs.BoundedArray:
        """[N] int32 in [0, A), or [N, A] float32 in [-1, 1] if `continuous`."""
        if self.continuous:
            shape = (self.num_agents, self.num_actions)
            return specs.BoundedArray(shape, jnp.float32, -1.0, 1.0, name="action")
        number = jnp.full((self.num_agents,), self.num_actions, jnp.int32)
        return specs.MultiDiscreteArray(number, jnp.int32, name="action")

    @cached_property
    def reward_spec(self) -> specs.Array:
        """[N] float32."""
        return specs.Array((self.num_agents,), jnp.float32, name="reward")

    @cached_property
    def discount_spec(self) -> specs.BoundedArray:
        """[N] float32 in [0, 1]."""
        return specs.BoundedArray((self.num_agents,), jnp.float32, 0.0, 1.0, name="discount")

    def _observation(self, agents_view: jax.Array, step_count: jax.Array) -> Observation:
        """Every action is available to every agent at all times."""
        mask = jnp.ones((self.num_agents, self.num_actions), bool)
        return Observation(agents_view, mask, step_count)

    def _first(
        self, observation: Observation, extras: Mapping[str, jax.Array]
    ) -> TimeStep[Observation]:
        return restart(observation, dict(extras), shape=(self.num_agents,), dtype=jnp.float32)

    def _next(
        self,
        observation: Observation,
        reward: jax.Array,
        terminated: jax.Array | bool,
        extras: Mapping[str, jax.Array],
        left: jax.Array | bool = False,
    ) -> TimeStep[Observation]:
        """The time step after a transition.

        Args:
            terminated: [] bool, whether the episode ended by itself; wins over truncation.
            left: [N] bool, the agents whose return ends with this step whatever the episode does.
        """
        terminated = jnp.asarray(terminated)
        last = terminated
        if self.time_limit is not None:
            last = last | (observation.step_count >= self.time_limit)
        discount = jnp.where(terminated | left, 0.0, 1.0).astype(jnp.float32)
        return TimeStep(
            step_type=jnp.where(last, StepType.LAST, StepType.MID),
            reward=reward.astype(jnp.float32),
            discount=jnp.broadcast_to(discount, (self.num_agents,)),
            observation=observation,
            extras=dict(extras),
        )

    def render(self, state: Any, save_path: str | None = None) -> Any:
        """Draws one state: an RGBA array [H, W, 4] uint8, also written to `save_path` (PNG)."""
        return self.viewer.render(state, save_path)

    def animate(self, states: Any, interval: int = 300, save_path: str | None = None) -> Any:
        """Animates states (a list, or one state with a leading time axis), `interval` ms apart.

        Returns the matplotlib animation; written to `save_path` as a GIF when that is given.
        """
        return self.viewer.animate(states, interval, save_path)

    def filmstrip(self, states: Any, save_path: str | None = None) -> Any:
        """Draws an episode as one picture, frame beside frame: RGBA array [H, W, 4] uint8."""
        return self.viewer.filmstrip(states, save_path)

    def close(self) -> None:
        """Closes the viewer, if one was ever built."""
        if "viewer" in self.__dict__:
            self.viewer.close()
