"""Connector of jumanji: wires that may not cross."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jumanji.environments.routing.connector import env as published
from jumanji.environments.routing.connector.constants import PATH, POSITION, TARGET
from jumanji.environments.routing.connector.generator import RandomWalkGenerator
from jumanji.environments.routing.connector.viewer import ConnectorViewer
from jumanji.types import TimeStep
from jumanji.viewer import Viewer

from jaxmethods.envs import arguments
from jaxmethods.envs.adapters.adapter import NEVER, REWARDS, Adapted
from jaxmethods.envs.team import grid

CHANNELS = 5


class Connector(Adapted):
    """Each agent leads a wire from its start to its target; wires block one another.

    - observation: `Observation`
        - `agents_view` [N, 5 W] int8: for each of the W cells, row by row, whether it holds
          the head of another agent, the target of another, the path of anyone, the own head,
          the own target. W = grid_size^2, or (2 crop + 1)^2 around the own head, where cells
          off the grid count as path: nobody can enter them.
        - `action_mask` [N, 5] bool: moves into cells that are free or hold the own target.
        - `step_count` [] int32.
    - action [N] int32: 0 nothing, 1 up, 2 right, 3 down, 4 left. A masked action does nothing;
      of agents that move into the same cell one does.
    - reward [N] float32: 1 for connecting, -0.03 for every step begun without being connected;
      "team": the sum over agents for everybody.
    - termination: every agent is connected or blocked. Until then discounts are 1, also those
      of agents that are: a connected one is paid 0 from then on, or what the team earns, and a
      blocked one goes on paying, which is a consequence of its moves (jumanji's discount of 0
      would make being blocked the cheapest way out). `time_limit` truncates (discount 1).
    - extras: `success` [] bool: all agents are connected.

    ```python
    env = Connector.preset("5x5x3", crop=2)
    state, timestep = jax.jit(env.reset)(jax.random.key(0))
    state, timestep = jax.jit(env.step)(state, env.action_spec.generate_value())
    ```

    `presets`: grid and number of agents; "10x10x10" is jumanji's.
    """

    presets = MappingProxyType(
        {
            "5x5x3": {"grid_size": 5, "n_agents": 3},
            "7x7x5": {"grid_size": 7, "n_agents": 5},
            "10x10x10": {"grid_size": 10, "n_agents": 10},
        }
    )

    def __init__(
        self,
        grid_size: int = 10,
        n_agents: int = 10,
        crop: int | None = None,
        reward: str = "team",
        time_limit: int | None = 50,
        viewer: Viewer | None = None,
    ) -> None:
        """Builds the environment.

        Args:
            grid_size: side of the grid.
            n_agents: N; two cells are needed for each.
            crop: cells seen in each direction around the own head; None: the whole grid.
            reward: "team" or "individual".
            time_limit: steps after which an episode is truncated; None: never.
            viewer: draws states; by default jumanji's.

        Raises:
            ValueError: one line naming the argument, what came and what was expected.
        """
        self.grid_size = arguments.check_integer("grid_size", grid_size, 2)
        n_agents = arguments.check_integer("n_agents", n_agents, 1, self.grid_size**2 // 2)
        self.crop = None if crop is None else arguments.check_integer("crop", crop, 0)
        side = self.grid_size if self.crop is None else 2 * self.crop + 1
        super().__init__(
            published.Connector(RandomWalkGenerator(self.grid_size, n_agents), time_limit=NEVER),
            reward=arguments.check_choice("reward", reward, REWARDS),
            episode_cap=50,
            num_agents=n_agents,
            num_actions=5,
            observation_size=CHANNELS * side**2,
            view_bounds=(0, 1),
            view_dtype=jnp.int8,
            time_limit=arguments.check_time_limit(time_limit),
            viewer=viewer,
        )

    def _view(self, wrapped: Any, observation: Any) -> jax.Array:
        ids = self._cells(wrapped)
        kind, owner = (ids - 1) % 3 + 1, (ids - 1) // 3  # of no meaning where ids is 0
        own = owner == np.arange(self.num_agents)[:, None]
        path, head, target = ((ids > 0) & (kind == part) for part in (PATH, POSITION, TARGET))
        view = jnp.stack([head & ~own, target & ~own, path, head & own, target & own], axis=-1)
        return view.reshape(self.num_agents, -1)  # [N, W, 5] -> [N, 5 W]

    def _cells(self, wrapped: Any) -> jax.Array:
        """The numbers of the cells that each agent sees: [N, W] int32."""
        if self.crop is None:
            return jnp.broadcast_to(wrapped.grid.ravel(), (self.num_agents, wrapped.grid.size))
        rows, columns = grid.window_cells(wrapped.agents.position, self.crop)
        size = self.grid_size
        classes = grid.window_classes(rows, columns, size, size, outside=size**2)
        return jnp.append(wrapped.grid.ravel(), PATH)[classes]

    def _success(self, wrapped: Any, timestep: TimeStep[Any]) -> jax.Array:
        return jnp.all(wrapped.agents.connected)

    def _drawn(self, wrapped: Any) -> Any:
        return wrapped.grid

    def _wrapped_viewer(self) -> Viewer:
        return ConnectorViewer("Connector", self.num_agents, "rgb_array")
