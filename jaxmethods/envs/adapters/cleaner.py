"""Cleaner of jumanji: a team sweeps a maze."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jumanji.environments.routing.cleaner import env as published
from jumanji.environments.routing.cleaner.constants import DIRTY, WALL
from jumanji.environments.routing.cleaner.generator import RandomGenerator
from jumanji.environments.routing.cleaner.viewer import CleanerViewer
from jumanji.types import TimeStep
from jumanji.viewer import Viewer

from jaxmethods.envs import arguments
from jaxmethods.envs.adapters.adapter import NEVER, Adapted
from jaxmethods.envs.team import grid

CHANNELS = 3


class Cleaner(Adapted):
    """Agents start in a corner of a random maze and clean the tiles that they cross.

    - observation: `Observation`
        - `agents_view` [N, 3 (2v+1)^2 + 2] float32: for each cell of the window around the own
          one, row by row, whether it is dirty, whether it is a wall (as is everything outside)
          and how many agents stand there, the observer included; then row / dim, column / dim.
        - `action_mask` [N, 4] bool: moves that don't run into a wall.
        - `step_count` [] int32.
    - action [N] int32: 0 up, 1 right, 2 down, 3 left. The mask is compulsory: see termination.
    - reward [N] float32: for every agent the tiles cleaned in the step, less 0.5.
    - termination: all tiles are clean, or an agent took a masked action. `time_limit` truncates
      (discount 1).
    - extras: `success` [] bool: all tiles are clean.

    ```python
    env = Cleaner.preset("10x10x3")
    state, timestep = jax.jit(env.reset)(jax.random.key(0))
    right = jnp.ones(env.num_agents, jnp.int32)
    state, timestep = jax.jit(env.step)(state, right)
    ```

    `presets`: side of the maze and number of agents; "10x10x3" is jumanji's. Mazes are square:
    jumanji 1.1 confuses rows and columns in the action mask of others.
    """

    presets = MappingProxyType(
        {
            "10x10x3": {"dim": 10, "n_agents": 3},
            "15x15x6": {"dim": 15, "n_agents": 6, "time_limit": 225},
            "20x20x10": {"dim": 20, "n_agents": 10, "time_limit": 400},
        }
    )

    def __init__(
        self,
        dim: int = 10,
        n_agents: int = 3,
        vision: int = 2,
        penalty: float = 0.5,
        time_limit: int | None = 100,
        viewer: Viewer | None = None,
    ) -> None:
        """Builds the environment.

        Args:
            dim: side of the maze.
            n_agents: N.
            vision: v, cells seen in each direction.
            penalty: taken from the reward in every step.
            time_limit: steps after which an episode is truncated (jumanji: dim^2); None: never.
            viewer: draws states; by default jumanji's.

        Raises:
            ValueError: one line naming the argument, what came and what was expected.
        """
        self.dim = arguments.check_integer("dim", dim, 2, grid.MAX_DIM)
        n_agents = arguments.check_integer("n_agents", n_agents, 1, 127)
        self.vision = arguments.check_integer("vision", vision, 0)
        wrapped = published.Cleaner(
            RandomGenerator(self.dim, self.dim, n_agents),
            time_limit=NEVER,
            penalty_per_timestep=arguments.check_number("penalty", penalty, 0.0),
        )
        super().__init__(
            wrapped,
            episode_cap=self.dim**2,
            num_agents=n_agents,
            num_actions=4,
            observation_size=CHANNELS * (2 * self.vision + 1) ** 2 + 2,
            view_bounds=(0, n_agents),
            view_dtype=jnp.float32,
            time_limit=arguments.check_time_limit(time_limit),
            viewer=viewer,
        )

    def _view(self, wrapped: Any, observation: Any) -> jax.Array:
        dim, locations = self.dim, wrapped.agents_locations
        rows, columns = grid.window_cells(locations, self.vision)
        classes = grid.window_classes(rows, columns, dim, dim, outside=dim**2)
        tiles = jnp.append(wrapped.grid.ravel(), jnp.int8(WALL))[classes]
        agents = grid.window_counts(rows, columns, locations)
        window = jnp.stack([tiles == DIRTY, tiles == WALL, agents], axis=-1)  # [N, W, 3]
        return jnp.concatenate([window.reshape(len(locations), -1), locations / dim], axis=-1)

    def _success(self, wrapped: Any, timestep: TimeStep[Any]) -> jax.Array:
        return ~jnp.any(wrapped.grid == DIRTY)

    def _wrapped_viewer(self) -> Viewer:
        return CleanerViewer("Cleaner", "rgb_array")
