"""Traffic Junction of CommNet (Sukhbaatar et al., 2016) in the form of IC3Net."""

from __future__ import annotations

from types import MappingProxyType

import jax
import jax.numpy as jnp
from jumanji.types import TimeStep
from jumanji.viewer import Viewer

from jaxmethods.envs import arguments
from jaxmethods.envs.team import grid
from jaxmethods.envs.team.environment import TeamEnvironment
from jaxmethods.envs.team.traffic_junction.curriculum import ADD_RATES
from jaxmethods.envs.team.traffic_junction.generator import draw_arrivals, empty_roads
from jaxmethods.envs.team.traffic_junction.observer import (
    VOCABULARIES,
    agents_view,
    observation_size,
)
from jaxmethods.envs.team.traffic_junction.roads import Roads
from jaxmethods.envs.team.traffic_junction.types import Arrivals, State
from jaxmethods.envs.team.types import Observation, one_more

EPISODE_CAPS = MappingProxyType({"easy": 20, "medium": 40, "hard": 80})

BRAKE = 1
WAIT_COST = -0.01
CRASH_COST = -10.0


class TrafficJunction(TeamEnvironment):
    """Cars enter, follow their routes by gas or brake, and must not meet on a cell.

    There are n slots. A car that enters takes a free one and leaves it at the end of its route;
    in between the slot is alive.

    - observation: `Observation`
        - `agents_view` [n, D] float32: last action, route and the window around the car, see
          `observer.agents_view`; all 0 for slots that aren't alive.
        - `action_mask` [n, 2] bool: always True.
        - `step_count` [] int32.
    - action [n] int32: 0 gas (one cell along the route), 1 brake. Slots that aren't alive
      ignore it.
    - reward [n] float32: for alive slots -0.01 for each step since the car entered and -10 if
      another car is on the same cell; 0 for others.
    - termination: never. `time_limit` truncates (discount 1). The discount of a slot is 0 in the
      step in which its car leaves: what the slot is paid later belongs to another car (IC3Net's
      `is_completed`). A car that enters the slot in that very step is paid with it, in IC3Net too.
    - extras: `success` [] bool: no collision so far in this episode (so success at the last
      step is that of the episode); `alive` [n] bool: slots alive after the step. Losses and
      means over agents should count alive slots only.

    Cars enter at each entry with probability `state.add_rate`. It is part of the state, so that
    a curriculum (`curriculum`, `with_add_rate`) changes it without retracing; automatic reset
    through `rollout.vectorize` keeps it.

    ```python
    env = TrafficJunction.preset("medium")
    state, timestep = jax.jit(env.reset)(jax.random.key(0))
    state = with_add_rate(state, curriculum(epoch, "medium"))
    state, timestep = jax.jit(env.step)(state, env.action_spec.generate_value())
    ```

    `presets` are IC3Net's three levels with the rate that its curriculum begins with.
    """

    presets = MappingProxyType(
        {
            "easy": {"difficulty": "easy", "n_cars": 5, "dim": 6, "vision": 0},
            "medium": {"difficulty": "medium", "n_cars": 10, "dim": 14, "vision": 1},
            "hard": {"difficulty": "hard", "n_cars": 20, "dim": 18, "vision": 1},
        }
    )

    def __init__(
        self,
        difficulty: str = "easy",
        n_cars: int = 5,
        dim: int = 6,
        vision: int = 1,
        vocabulary: str = "bool",
        add_rate: float | None = None,
        time_limit: int | None = None,
        viewer: Viewer | None = None,
    ) -> None:
        """Builds the environment.

        Args:
            difficulty: "easy" (two one-lane roads), "medium" (two two-lane roads) or "hard"
                (four two-lane roads).
            n_cars: n, slots, in [1, 127].
            dim: size of the grid; even and at least 4 + vision for easy and medium, a multiple
                of 3 and at least 9 for hard; at most 180. Easy grids have side dim + 1.
            vision: v, cells seen in each direction.
            vocabulary: "bool" (one-hot cell classes) or "scalar" (coordinates, road or not).
            add_rate: arrival rate of new states, in [0, 1]; None: the difficulty's first one.
            time_limit: steps after which an episode is truncated; None: never.
            viewer: draws states; by default `viewer.TrafficJunctionViewer`.

        Raises:
            ValueError: one line naming the argument, what came and what was expected.
        """
        self.difficulty = arguments.check_choice("difficulty", difficulty, ADD_RATES)
        self.n_cars = arguments.check_integer("n_cars", n_cars, 1, 127)
        self.vision = arguments.check_integer("vision", vision, 0)
        self.dim = self._check_dim(dim)
        self.vocabulary = arguments.check_choice("vocabulary", vocabulary, VOCABULARIES)
        if add_rate is None:
            add_rate = ADD_RATES[self.difficulty][0]
        self.add_rate = arguments.check_fraction("add_rate", add_rate)
        self.roads = Roads(self.difficulty, self.dim)
        super().__init__(
            num_agents=self.n_cars,
            num_actions=2,
            observation_size=observation_size(self.roads, self.vision, self.vocabulary),
            view_bounds=(0.0, float(self.n_cars)),
            view_dtype=jnp.float32,
            time_limit=arguments.check_time_limit(time_limit),
            viewer=viewer,
        )

    @property
    def episode_cap(self) -> int:
        """Steps an evaluation episode may take: 20, 40 or 80 by difficulty."""
        return EPISODE_CAPS[self.difficulty]

    def __repr__(self) -> str:
        return (
            f"TrafficJunction(difficulty={self.difficulty!r}, n_cars={self.n_cars}, "
            f"dim={self.dim}, vision={self.vision}, vocabulary={self.vocabulary!r})"
        )

    def reset(self, key: jax.Array) -> tuple[State, TimeStep[Observation]]:
        """Begins an episode with empty roads from a [] typed random key."""
        state = empty_roads(self.n_cars, self.add_rate, key)
        return state, self._first(self._observe(state), self._extras(state))

    def step(self, state: State, action: jax.Array) -> tuple[State, TimeStep[Observation]]:
        """Drives every car, then lets new ones in at random; `action` is [n] int32."""
        key, draw = jax.random.split(state.key)
        driven = self._drive(state._replace(key=key), action)
        entries = len(self.roads.entries)
        arrivals = draw_arrivals(
            draw, driven.alive, driven.add_rate, entries, self.roads.routes_per_entry
        )
        return self._arrive(driven, arrivals)

    def step_with_arrivals(
        self, state: State, action: jax.Array, arrivals: Arrivals
    ) -> tuple[State, TimeStep[Observation]]:
        """Drives every car, then lets exactly these in: `step` without its randomness."""
        return self._arrive(self._drive(state, action), arrivals)

    def keep_settings(self, state: State, previous: State) -> State:
        """The state after an automatic reset with the arrival rate from before it."""
        return state._replace(add_rate=previous.add_rate)

    def _drive(self, state: State, action: jax.Array) -> State:
        """Moves the cars that are alive; those at the end of their route leave."""
        braking = state.alive & (action == BRAKE)
        moving = state.alive & ~braking
        position = state.route_position + moving
        completed = moving & (position == jnp.asarray(self.roads.lengths)[state.route])
        last_action = jnp.where(moving & ~completed, 0, state.last_action)
        return state._replace(
            alive=state.alive & ~completed,
            wait=jnp.where(completed, 0, jnp.where(state.alive, one_more(state.wait), state.wait)),
            last_action=jnp.where(braking, BRAKE, last_action),
            route_position=position,
            completed=completed,
        )

    def _arrive(self, state: State, arrivals: Arrivals) -> tuple[State, TimeStep[Observation]]:
        """Lets new cars in, then looks and pays."""
        takes = arrivals.car[:, None] == jnp.arange(self.n_cars)  # [G, n]
        enters = jnp.any(takes, axis=0)
        entry = jnp.arange(len(self.roads.entries))
        routes = entry * self.roads.routes_per_entry + arrivals.path
        taken = jnp.sum(jnp.where(takes, routes[:, None], 0), axis=0, dtype=jnp.int32)
        route = jnp.where(enters, taken, state.route)
        position = jnp.where(enters, 0, state.route_position)
        alive = state.alive | enters
        on_road = jnp.asarray(self.roads.routes)[route, position]
        location = jnp.where(alive[:, None], on_road, 0)
        collides = alive & (grid.occupancy(location) > 1)
        state = state._replace(
            alive=alive,
            route=route,
            route_position=position,
            location=location,
            crashed=state.crashed | jnp.any(collides),
            step_count=one_more(state.step_count),
        )
        paid = WAIT_COST * state.wait + CRASH_COST * collides
        return state, self._next(
            self._observe(state),
            reward=jnp.where(alive, paid, 0.0),
            terminated=False,
            extras=self._extras(state),
            left=state.completed,
        )

    def _observe(self, state: State) -> Observation:
        view = agents_view(state, self.roads, self.vision, self.vocabulary)
        return self._observation(view, state.step_count)

    def _extras(self, state: State) -> dict[str, jax.Array]:
        return {"success": ~state.crashed, "alive": state.alive}

    def _check_dim(self, dim: int) -> int:
        dim = arguments.check_integer("dim", dim, 1, grid.MAX_DIM)
        if self.difficulty == "hard":
            if dim % 3 or dim < 9:
                raise ValueError(f"dim must be a multiple of 3, at least 9, for hard, got {dim}")
        elif dim % 2 or dim < 4 + self.vision:
            raise ValueError(
                f"dim must be even, at least 4 + vision = {4 + self.vision}, "
                f"for {self.difficulty}, got {dim}"
            )
        return dim

    def make_viewer(self) -> Viewer:
        """The viewer of this map; matplotlib is first needed here."""
        from jaxmethods.envs.team.traffic_junction.viewer import TrafficJunctionViewer

        return TrafficJunctionViewer(self.roads)
