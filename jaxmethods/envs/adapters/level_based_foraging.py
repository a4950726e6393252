"""Level-Based Foraging of jumanji (Papoudakis et al., NeurIPS 2021, "LBF")."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jumanji.environments.routing.lbf import env as published
from jumanji.environments.routing.lbf.generator import RandomGenerator
from jumanji.environments.routing.lbf.viewer import LevelBasedForagingViewer
from jumanji.types import TimeStep
from jumanji.viewer import Viewer

from jaxmethods.envs import arguments
from jaxmethods.envs.adapters.adapter import NEVER, REWARDS, Adapted


class LevelBasedForaging(Adapted):
    """Agents with levels eat food that may need several of them at once.

    - observation: `Observation`
        - `agents_view` [N, 3 (F + N)] float32: (row, column, level) of the F items of food, of
          the agent itself and of the others, relative to the corner of its window; (-1, -1, 0)
          for what has been eaten or is further than `fov` cells away.
        - `action_mask` [N, 6] bool: moves into free cells, loading beside food.
        - `step_count` [] int32.
    - action [N] int32: 0 nothing, 1 up, 2 down, 3 left, 4 right, 5 load. Food is eaten when the
      levels of the agents that load beside it reach its own.
    - reward [N] float32: the levels of the food eaten in the step, divided by those of all food
      (`normalize_reward`) and shared by level among those who loaded it; "team": the sum of
      that over agents for everybody.
    - termination: all food is eaten. `time_limit` truncates (discount 1).
    - extras: `success` [] bool: all food is eaten.

    ```python
    env = LevelBasedForaging.preset("2s-8x8-2p-2f-coop")
    state, timestep = jax.jit(env.reset)(jax.random.key(0))
    state, timestep = jax.jit(env.step)(state, env.action_spec.generate_value())
    ```

    `presets`: tasks of the benchmark: sight where it is short, grid, players, food. Sight is
    short by default, other than jumanji's: agents that see everything need not communicate.
    """

    presets = MappingProxyType(
        {
            "2s-8x8-2p-2f-coop": {"grid_size": 8, "fov": 2, "n_agents": 2, "n_food": 2},
            "8x8-2p-2f-coop": {"grid_size": 8, "fov": 8, "n_agents": 2, "n_food": 2},
            "2s-10x10-3p-3f": {
                **{"grid_size": 10, "fov": 2, "n_agents": 3, "n_food": 3},
                "force_coop": False,
            },
            "15x15-4p-5f": {
                **{"grid_size": 15, "fov": 15, "n_agents": 4, "n_food": 5},
                "force_coop": False,
            },
        }
    )

    def __init__(
        self,
        grid_size: int = 8,
        fov: int = 2,
        n_agents: int = 2,
        n_food: int = 2,
        max_agent_level: int = 2,
        force_coop: bool = True,
        normalize_reward: bool = True,
        penalty: float = 0.0,
        reward: str = "team",
        time_limit: int | None = 100,
        viewer: Viewer | None = None,
    ) -> None:
        """Builds the environment.

        Args:
            grid_size: side of the grid, at least 5.
            fov: cells seen in each direction, in [1, grid_size].
            n_agents: N.
            n_food: F; the cells off the border, less N, must outnumber 5 F.
            max_agent_level: largest level of an agent, at least 2.
            force_coop: all food needs the three strongest agents (both, if there are two).
            normalize_reward: whether all the food together is worth 1.
            penalty: taken from agents that load food in vain.
            reward: "team" or "individual".
            time_limit: steps after which an episode is truncated; None: never.
            viewer: draws states; by default jumanji's.

        Raises:
            ValueError: one line naming the argument, what came and what was expected.
        """
        grid_size = arguments.check_integer("grid_size", grid_size, 5)
        n_agents = arguments.check_integer("n_agents", n_agents, 1)
        n_food = arguments.check_integer("n_food", n_food, 1)
        room = (grid_size - 2) ** 2 - n_agents
        if room <= 5 * n_food:
            raise ValueError(
                f"grid_size must leave more than 5 n_food = {5 * n_food} cells off the border "
                f"besides {n_agents} agents, got {grid_size} ({room} cells)"
            )
        max_agent_level = arguments.check_integer("max_agent_level", max_agent_level, 2)
        generator = RandomGenerator(
            grid_size,
            n_agents,
            n_food,
            arguments.check_integer("fov", fov, 1, grid_size),
            max_agent_level,
            arguments.check_flag("force_coop", force_coop),
        )
        wrapped = published.LevelBasedForaging(
            generator,
            time_limit=NEVER,
            normalize_reward=arguments.check_flag("normalize_reward", normalize_reward),
            penalty=arguments.check_number("penalty", penalty, 0.0),
        )
        super().__init__(
            wrapped,
            reward=arguments.check_choice("reward", reward, REWARDS),
            episode_cap=100,
            num_agents=n_agents,
            num_actions=6,
            observation_size=3 * (n_food + n_agents),
            view_bounds=(-1, max(grid_size, 3 * max_agent_level)),
            view_dtype=jnp.float32,
            time_limit=arguments.check_time_limit(time_limit),
            viewer=viewer,
        )

    def _view(self, wrapped: Any, observation: Any) -> jax.Array:
        return observation.agents_view

    def _success(self, wrapped: Any, timestep: TimeStep[Any]) -> jax.Array:
        return jnp.all(wrapped.food_items.eaten)

    def _wrapped_viewer(self) -> Viewer:
        size = self.wrapped._generator.grid_size
        return LevelBasedForagingViewer(size, "LevelBasedForaging", "rgb_array")
