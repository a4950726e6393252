"""SMAX of JaxMARL (Rutherford et al., NeurIPS 2024): StarCraft's micromanagement, in JAX."""

from __future__ import annotations

import contextlib
import io
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jumanji.types import TimeStep
from jumanji.viewer import Viewer

from jaxmethods.envs import arguments
from jaxmethods.envs.adapters.adapter import NEVER, State, strong
from jaxmethods.envs.team.environment import TeamEnvironment
from jaxmethods.envs.team.types import Observation, one_more
from jaxmethods.errors import import_extra

SCENARIOS = (
    *("3m", "8m", "25m", "2s3z", "3s5z", "5m_vs_6m", "10m_vs_11m", "27m_vs_30m"),
    *("3s5z_vs_3s6z", "3s_vs_5z", "6h_vs_8z"),
    *("smacv2_5_units", "smacv2_10_units", "smacv2_20_units"),
)


class Battle(NamedTuple):
    """What `State.wrapped` is here."""

    units: Any
    """JaxMARL's state of the units and of the enemy's policy."""
    key: jax.Array
    """[] random key, of the coming steps and of the next episode."""


class Smax(TeamEnvironment):
    """Allied units fight enemy units that follow JaxMARL's heuristic.

    Needs JaxMARL: `pip install 'jaxmethods[smax]'`.

    - observation: `Observation`
        - `agents_view` [N, D] float32: what the unit sees of the other units, then of itself;
          zeros for what is dead or out of sight. The global `world_state` is left out.
        - `action_mask` [N, A] bool: A = 5 + number of enemies; attacks on enemies in range, and
          for dead units only to stop.
        - `step_count` [] int32.
    - action [N] int32: 0 to 3 move, 4 stop, 5 + k attack enemy k.
    - reward [N] float32: for every ally, dead or alive, the health that the enemies lost in the
      step (each as a fraction of its full health, averaged), and 1 for winning.
    - termination: all allies or all enemies are dead. Until then discounts are 1, also those of
      dead allies: the team's reward, which they share, is what their last actions led to.
      `time_limit` truncates (discount 1).
    - extras: `success` [] bool: won, that is all enemies are dead and not all allies.
      `alive` [N] bool: which allies are alive after the step; all at reset.

    ```python
    env = Smax.preset("3m")
    state, timestep = jax.jit(env.reset)(jax.random.key(0))
    state, timestep = jax.jit(env.step)(state, env.action_spec.generate_value())
    ```

    `presets`: JaxMARL's scenarios.
    """

    presets = MappingProxyType({name: {"scenario": name} for name in SCENARIOS})

    def __init__(
        self,
        scenario: str = "3m",
        see_enemy_actions: bool = True,
        walls_cause_death: bool = True,
        time_limit: int | None = 100,
        viewer: Viewer | None = None,
    ) -> None:
        """Builds the environment.

        Args:
            scenario: one of `SCENARIOS`, or registered with JaxMARL's `register_scenario`.
            see_enemy_actions: whether views show the last actions of enemies in sight.
            walls_cause_death: whether units die at the border of the map.
            time_limit: steps after which an episode is truncated; None: never.
            viewer: draws states; by default `SmaxViewer`.

        Raises:
            MissingExtraError: JaxMARL is not installed.
            ValueError: one line naming the argument, what came and what was expected.
        """
        smax = _import_smax()
        known = smax.MAP_NAME_TO_SCENARIO
        self.scenario = arguments.check_choice("scenario", scenario, known)
        self.wrapped = import_extra("jaxmarl.environments.smax", "smax").HeuristicEnemySMAX(
            scenario=known[scenario],
            see_enemy_actions=arguments.check_flag("see_enemy_actions", see_enemy_actions),
            walls_cause_death=arguments.check_flag("walls_cause_death", walls_cause_death),
            max_steps=NEVER,
        )
        self.agents = list(self.wrapped.agents)
        super().__init__(
            num_agents=len(self.agents),
            num_actions=self.wrapped.action_spaces[self.agents[0]].n,
            observation_size=self.wrapped.observation_spaces[self.agents[0]].shape[0],
            view_bounds=(-np.inf, np.inf),
            view_dtype=jnp.float32,
            time_limit=arguments.check_time_limit(time_limit),
            viewer=viewer,
        )

    @property
    def episode_cap(self) -> int:
        """Steps an evaluation episode may take: JaxMARL's 100."""
        return 100

    def __repr__(self) -> str:
        return f"Smax(scenario={self.scenario!r}, time_limit={self.time_limit})"

    def reset(self, key: jax.Array) -> tuple[State, TimeStep[Observation]]:
        """Begins an episode from a [] typed random key."""
        key, draw = jax.random.split(key)
        views, units = self.wrapped.reset(draw)
        state = State(strong(Battle(units, key)), jnp.zeros((), bool), jnp.zeros((), jnp.int32))
        return state, self._first(self._observe(state, views), self._extras(state))

    def step(self, state: State, action: jax.Array) -> tuple[State, TimeStep[Observation]]:
        """Lets the allies do `action` [N] int32, and the enemies what their heuristic says."""
        key, draw = jax.random.split(state.wrapped.key)
        actions = dict(zip(self.agents, action, strict=True))
        # `step` would reset ended episodes, and so lose the observation that they end with.
        views, units, rewards, dones, _ = self.wrapped.step_env(draw, state.wrapped.units, actions)
        allies, enemies = self._alive(units)
        won = jnp.any(allies) & ~jnp.any(enemies)
        state = State(strong(Battle(units, key)), state.success | won, one_more(state.step_count))
        return state, self._next(
            self._observe(state, views),
            reward=self._stack(rewards),
            terminated=dones["__all__"],
            extras=self._extras(state),
        )

    def _observe(self, state: State, views: dict[str, jax.Array]) -> Observation:
        mask = self._stack(self.wrapped.get_avail_actions(state.wrapped.units))
        view = self._stack(views).astype(jnp.float32)
        return Observation(view, mask.astype(bool), state.step_count)

    def _extras(self, state: State) -> dict[str, jax.Array]:
        return {"success": state.success, "alive": self._alive(state.wrapped.units)[0]}

    def _alive(self, units: Any) -> tuple[jax.Array, jax.Array]:
        """Which allies [N] and which enemies are alive."""
        alive = units.state.unit_alive
        return alive[: self.num_agents], alive[self.num_agents :]

    def _stack(self, by_agent: dict[str, jax.Array]) -> jax.Array:
        """[N, ...] from one array an agent; other entries, such as `world_state`, are dropped."""
        return jnp.stack([by_agent[agent] for agent in self.agents])

    def make_viewer(self) -> Viewer:
        """The viewer of this map; matplotlib is first needed here."""
        from jaxmethods.envs.adapters.smax_viewer import SmaxViewer

        return SmaxViewer(self.wrapped.map_height, self.wrapped.map_width, self.num_agents)


def _import_smax() -> ModuleType:
    """JaxMARL's module of scenarios, without the lines that JaxMARL prints when imported."""
    with contextlib.redirect_stdout(io.StringIO()):
        return import_extra("jaxmarl.environments.smax.smax_env", "smax")
