"""SearchAndRescue of jumanji: searchers steer through a square without borders."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jumanji.environments.swarms.search_and_rescue import env as published
from jumanji.environments.swarms.search_and_rescue.generator import RandomGenerator
from jumanji.environments.swarms.search_and_rescue.observations import AgentAndTargetObservationFn
from jumanji.environments.swarms.search_and_rescue.reward import IndividualRewardFn
from jumanji.environments.swarms.search_and_rescue.viewer import SearchAndRescueViewer
from jumanji.types import TimeStep
from jumanji.viewer import Viewer

from jaxmethods.envs import arguments
from jaxmethods.envs.adapters.adapter import NEVER, REWARDS, Adapted

CHANNELS = 3


class SearchAndRescue(Adapted):
    """Searchers look for slowly drifting targets; actions are continuous.

    - observation: `Observation`
        - `agents_view` [N, 3 V + 3] float32: along each of V rays of the own field of view the
          distance to another searcher, then to a target that was found, then to one that
          wasn't, as a fraction of the range of sight (-1: nothing there); the own position in
          [0, 1]^2; the fraction of targets not found yet.
        - `action_mask` [N, 2] bool: always True.
        - `step_count` [] int32.
    - action [N, 2] float32 in [-1, 1]: rotation and acceleration as fractions of the largest
      ones; what lies outside is clipped.
    - reward [N] float32: 1 for a target that the searcher found, split among those who found it
      in the same step and falling linearly to 0 at `time_limit` (`scale_rewards`); "team": the
      sum over searchers for everybody.
    - termination: all targets are found. `time_limit` truncates (discount 1).
    - extras: `success` [] bool: all targets are found.

    ```python
    env = SearchAndRescue(n_searchers=3)
    state, timestep = jax.jit(env.reset)(jax.random.key(0))
    state, timestep = jax.jit(env.step)(state, jnp.zeros((3, 2)))
    ```

    `presets`: "default" is jumanji's.
    """

    continuous = True
    presets = MappingProxyType({"default": {"n_searchers": 2, "n_targets": 40}})

    def __init__(
        self,
        n_searchers: int = 2,
        n_targets: int = 40,
        n_rays: int = 128,
        searcher_range: float = 0.4,
        target_range: float = 0.1,
        contact_range: float = 0.02,
        scale_rewards: bool = True,
        reward: str = "team",
        time_limit: int | None = 400,
        viewer: Viewer | None = None,
    ) -> None:
        """Builds the environment. The square has side 1.

        Args:
            n_searchers: N.
            n_targets: number of targets.
            n_rays: V, over 0.8 pi.
            searcher_range: distance at which another searcher is seen, in (0, 1].
            target_range: distance at which a target is seen, in (0, 1].
            contact_range: distance at which a target is found, in (0, 1].
            scale_rewards: whether what is found later is worth less; not without `time_limit`.
            reward: "team" or "individual".
            time_limit: steps after which an episode is truncated; None: never.
            viewer: draws states; by default jumanji's.

        Raises:
            ValueError: one line naming the argument, what came and what was expected.
        """
        n_searchers = arguments.check_integer("n_searchers", n_searchers, 1)
        n_targets = arguments.check_integer("n_targets", n_targets, 1)
        n_rays = arguments.check_integer("n_rays", n_rays, 1)
        contact_range = _check_range("contact_range", contact_range)
        time_limit = arguments.check_time_limit(time_limit)
        scale_rewards = arguments.check_flag("scale_rewards", scale_rewards)
        wrapped = published.SearchAndRescue(
            target_contact_range=contact_range,
            # Rewards are scaled by this limit, so it is given here: see `_terminated`.
            time_limit=NEVER if time_limit is None else time_limit,
            generator=RandomGenerator(n_searchers, n_targets),
            reward_fn=IndividualRewardFn(scale_rewards=scale_rewards and time_limit is not None),
            observation=AgentAndTargetObservationFn(
                num_vision=n_rays,
                searcher_vision_range=_check_range("searcher_range", searcher_range),
                target_vision_range=_check_range("target_range", target_range),
                view_angle=0.4,
                agent_radius=contact_range,
                env_size=1.0,
            ),
        )
        super().__init__(
            wrapped,
            reward=arguments.check_choice("reward", reward, REWARDS),
            episode_cap=400,
            num_agents=n_searchers,
            num_actions=2,
            observation_size=CHANNELS * n_rays + 3,
            view_bounds=(-1, 1),
            view_dtype=jnp.float32,
            time_limit=time_limit,
            viewer=viewer,
        )

    def _view(self, wrapped: Any, observation: Any) -> jax.Array:
        remaining = jnp.broadcast_to(observation.targets_remaining, (self.num_agents, 1))
        rays = observation.searcher_views.reshape(self.num_agents, -1)
        return jnp.concatenate([rays, observation.positions, remaining], axis=-1)

    def _mask(self, observation: Any) -> jax.Array:
        return jnp.ones((self.num_agents, self.num_actions), bool)

    def _success(self, wrapped: Any, timestep: TimeStep[Any]) -> jax.Array:
        return jnp.all(wrapped.targets.found)

    def _terminated(self, wrapped: Any, timestep: TimeStep[Any]) -> jax.Array:
        """Its last time step may also be that of the time limit, always with discount 0."""
        return self._success(wrapped, timestep)

    def _wrapped_viewer(self) -> Viewer:
        return SearchAndRescueViewer("SearchAndRescue", render_mode="rgb_array")


def _check_range(name: str, value: Any) -> float:
    if arguments.check_fraction(name, value) == 0:
        raise ValueError(f"{name} must be in (0, 1], got {value!r}")
    return float(value)
