"""RobotWarehouse of jumanji (Papoudakis et al., NeurIPS 2021, "RWARE")."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jumanji.environments.routing.robot_warehouse import env as published
from jumanji.environments.routing.robot_warehouse.generator import RandomGenerator
from jumanji.environments.routing.robot_warehouse.viewer import RobotWarehouseViewer
from jumanji.types import TimeStep
from jumanji.viewer import Viewer

from jaxmethods.envs import arguments
from jaxmethods.envs.adapters.adapter import NEVER, Adapted


class RobotWarehouse(Adapted):
    """Robots bring requested shelves to the goals of a warehouse.

    - observation: `Observation`
        - `agents_view` [N, D] float32: own position, load and direction, whether the robot is on
          a highway, and the robots and shelves in its sensor range; D = 66 for range 1.
        - `action_mask` [N, 5] bool: robots that carry a shelf may not drive into another one.
        - `step_count` [] int32.
    - action [N] int32: 0 nothing, 1 forward, 2 turn left, 3 turn right, 4 load or unload. A
      masked action does nothing.
    - reward [N] float32: for every robot the number of requested shelves delivered in the step.
    - termination: two robots collide. `time_limit` truncates (discount 1).
    - extras: `success` [] bool: at least one shelf has been delivered in this episode.

    ```python
    env = RobotWarehouse.preset("tiny-4ag")
    state, timestep = jax.jit(env.reset)(jax.random.key(0))
    state, timestep = jax.jit(env.step)(state, env.action_spec.generate_value())
    ```

    `presets`: the sizes of the RWARE benchmark; the defaults are jumanji's.
    """

    presets = MappingProxyType(
        {
            "tiny-2ag": {"shelf_rows": 1, "n_agents": 2, "request_queue_size": 2},
            "tiny-4ag": {"shelf_rows": 1, "n_agents": 4, "request_queue_size": 4},
            "small-4ag": {"shelf_rows": 2, "n_agents": 4, "request_queue_size": 4},
            "small-4ag-easy": {"shelf_rows": 2, "n_agents": 4, "request_queue_size": 8},
        }
    )

    def __init__(
        self,
        shelf_rows: int = 2,
        shelf_columns: int = 3,
        column_height: int = 8,
        n_agents: int = 4,
        sensor_range: int = 1,
        request_queue_size: int = 8,
        time_limit: int | None = 500,
        viewer: Viewer | None = None,
    ) -> None:
        """Builds the environment.

        Args:
            shelf_rows: clusters of shelves above one another.
            shelf_columns: clusters beside one another, an odd number from 3 on.
            column_height: rows of shelves in a cluster, each two shelves wide.
            n_agents: N.
            sensor_range: cells seen in each direction.
            request_queue_size: shelves that are requested at any time; fewer than there are.
            time_limit: steps after which an episode is truncated; None: never.
            viewer: draws states; by default jumanji's.

        Raises:
            ValueError: one line naming the argument, what came and what was expected.
        """
        shelf_rows = arguments.check_integer("shelf_rows", shelf_rows, 1)
        shelf_columns = arguments.check_integer("shelf_columns", shelf_columns, 3)
        if shelf_columns % 2 == 0:
            raise ValueError(f"shelf_columns must be odd, got {shelf_columns}")
        column_height = arguments.check_integer("column_height", column_height, 1)
        height, width = (column_height + 1) * shelf_rows + 2, 3 * shelf_columns + 1
        generator = RandomGenerator(
            shelf_rows,
            shelf_columns,
            column_height,
            arguments.check_integer("n_agents", n_agents, 1, height * width),
            arguments.check_integer("sensor_range", sensor_range, 1),
            arguments.check_integer("request_queue_size", request_queue_size, 1),
        )
        shelves = generator.shelf_ids.size
        if request_queue_size >= shelves:
            raise ValueError(
                f"request_queue_size must be less than the {shelves} shelves, "
                f"got {request_queue_size}"
            )
        wrapped = published.RobotWarehouse(generator, NEVER)
        super().__init__(
            wrapped,
            episode_cap=500,
            num_agents=n_agents,
            num_actions=5,
            observation_size=wrapped.num_obs_features,
            view_bounds=(0, max(height, width)),
            view_dtype=jnp.float32,
            time_limit=arguments.check_time_limit(time_limit),
            viewer=viewer,
        )

    def _view(self, wrapped: Any, observation: Any) -> jax.Array:
        return observation.agents_view

    def _success(self, wrapped: Any, timestep: TimeStep[Any]) -> jax.Array:
        return jnp.asarray(timestep.reward > 0)

    def _wrapped_viewer(self) -> Viewer:
        generator = self.wrapped._generator
        return RobotWarehouseViewer(
            generator.grid_size, generator.goals, "RobotWarehouse", "rgb_array"
        )
