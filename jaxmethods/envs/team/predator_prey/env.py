"""Predator-Prey of IC3Net (Singh et al., ICLR 2019) as CommFormer uses it."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jumanji.types import TimeStep
from jumanji.viewer import Viewer

from jaxmethods.envs import arguments
from jaxmethods.envs.team import grid
from jaxmethods.envs.team.environment import TeamEnvironment
from jaxmethods.envs.team.predator_prey.generator import RandomGenerator, initial_state
from jaxmethods.envs.team.predator_prey.observer import agents_view, observation_size
from jaxmethods.envs.team.predator_prey.rewards import (
    MODES,
    PREY_REWARD,
    agent_rewards,
    on_any_prey,
)
from jaxmethods.envs.team.predator_prey.types import State
from jaxmethods.envs.team.types import Observation, one_more


class PredatorPrey(TeamEnvironment):
    """n predators with short sight search a grid for prey that stands still.

    - observation: `Observation`
        - `agents_view` [N, (2v+1)^2 (dim^2+4)] int8: the window around each agent, see
          `observer.agents_view`. N is n_predators, plus n_prey if prey communicates.
        - `action_mask` [N, A] bool: always True.
        - `step_count` [] int32.
    - action [N] int32: 0 up, 1 right, 2 down, 3 left, 4 stay (without `stay`: 4 actions). All
      agents move at once, walls stop them, cells can be shared. A predator that has reached a
      prey doesn't move any more; the actions of prey are ignored.
    - reward [N] float32: -0.05 for a predator that is not on prey. On prey it gets 0 in mixed
      mode, 0.05 K in cooperative and 0.05 / K in competitive mode, K the number of predators
      on prey. Communicating prey gets 0.05 as long as K = 0, then 0.
    - termination: all predators have reached prey, in mixed mode only. `time_limit` truncates
      (discount 1); without it the environment never stops by itself.
    - extras: `success` [] bool: all predators stand on prey. Never in competitive mode, which
      has no common success.

    ```python
    env = PredatorPrey.preset("medium")
    state, timestep = jax.jit(env.reset)(jax.random.key(0))
    state, timestep = jax.jit(env.step)(state, env.action_spec.generate_value())
    ```

    `presets`: "reference" is that of the published CommFormer runs, the others are IC3Net's.
    """

    presets = MappingProxyType(
        {
            "reference": {"n_predators": 3, "dim": 5, "vision": 1},
            "easy": {"n_predators": 3, "dim": 5, "vision": 0},
            "medium": {"n_predators": 5, "dim": 10, "vision": 1},
            "hard": {"n_predators": 10, "dim": 20, "vision": 1},
        }
    )

    def __init__(
        self,
        n_predators: int = 3,
        n_prey: int = 1,
        dim: int = 5,
        vision: int = 1,
        mode: str = "mixed",
        stay: bool = True,
        prey_communicate: bool = False,
        time_limit: int | None = None,
        generator: Callable[[jax.Array], State] | None = None,
        viewer: Viewer | None = None,
    ) -> None:
        """Builds the environment.

        Args:
            n_predators: n, in [1, 127].
            n_prey: p, in [1, 127].
            dim: side of the grid, at most 180.
            vision: v, cells seen in each direction.
            mode: "mixed", "cooperative" or "competitive".
            stay: whether agents may choose to stay where they are.
            prey_communicate: append the prey to the agents (IC3Net's `enemy_comm`).
            time_limit: steps after which an episode is truncated; None: never.
            generator: key to first `State`; by default distinct cells, uniformly.
            viewer: draws states; by default `viewer.PredatorPreyViewer`.

        Raises:
            ValueError: one line naming the argument, what came and what was expected.
        """
        self.n_predators = arguments.check_integer("n_predators", n_predators, 1, 127)
        self.n_prey = arguments.check_integer("n_prey", n_prey, 1, 127)
        self.dim = arguments.check_integer("dim", dim, 1, grid.MAX_DIM)
        self.vision = arguments.check_integer("vision", vision, 0)
        self.mode = arguments.check_choice("mode", mode, MODES)
        self.stay = arguments.check_flag("stay", stay)
        self.prey_communicate = arguments.check_flag("prey_communicate", prey_communicate)
        if self.n_predators + self.n_prey > self.dim**2:
            raise ValueError(
                f"dim must give a cell to each of {self.n_predators} predators and "
                f"{self.n_prey} prey, got {self.dim} ({self.dim**2} cells)"
            )
        if generator is None:
            generator = RandomGenerator(self.n_predators, self.n_prey, self.dim)
        else:
            arguments.check_generator(
                generator, {"predators": (self.n_predators, 2), "prey": (self.n_prey, 2)}
            )
        self._generator = generator
        super().__init__(
            num_agents=self.n_predators + self.n_prey * self.prey_communicate,
            num_actions=len(grid.MOVES) if self.stay else len(grid.MOVES) - 1,
            observation_size=observation_size(self.dim, self.vision),
            view_bounds=(0, max(self.n_predators, self.n_prey)),
            view_dtype=jnp.int8,
            time_limit=arguments.check_time_limit(time_limit),
            viewer=viewer,
        )

    @property
    def episode_cap(self) -> int:
        """Steps an evaluation episode may take: 4 dim, hence IC3Net's 20, 40 and 80."""
        return 4 * self.dim

    def __repr__(self) -> str:
        return (
            f"PredatorPrey(n_predators={self.n_predators}, n_prey={self.n_prey}, dim={self.dim}, "
            f"vision={self.vision}, mode={self.mode!r})"
        )

    def reset(self, key: jax.Array) -> tuple[State, TimeStep[Observation]]:
        """Begins an episode from a [] typed random key."""
        return self._begin(self._generator(key))

    def reset_from(
        self, predators: jax.Array, prey: jax.Array, key: jax.Array
    ) -> tuple[State, TimeStep[Observation]]:
        """Begins an episode with predators [n, 2] and prey [p, 2] in given places."""
        return self._begin(initial_state(predators, prey, key))

    def step(self, state: State, action: jax.Array) -> tuple[State, TimeStep[Observation]]:
        """Moves every predator; `action` is [N] int32."""
        moved = grid.move(state.predators, action[: self.n_predators], self.dim)
        predators = jnp.where(state.reached[:, None], state.predators, moved)
        on_prey = on_any_prey(predators, state.prey)
        reached = state.reached | on_prey
        state = State(predators, state.prey, reached, one_more(state.step_count), state.key)
        return state, self._next(
            self._observe(state),
            reward=self._reward(on_prey),
            terminated=jnp.all(reached) if self.mode == "mixed" else False,
            extras={"success": self._success(on_prey)},
        )

    def _begin(self, state: State) -> tuple[State, TimeStep[Observation]]:
        return state, self._first(self._observe(state), {"success": jnp.zeros((), bool)})

    def _observe(self, state: State) -> Observation:
        view = agents_view(state, self.dim, self.vision, self.prey_communicate)
        return self._observation(view, state.step_count)

    def _reward(self, on_prey: jax.Array) -> jax.Array:
        """[N] float32 from on_prey [n] bool."""
        reward = agent_rewards(self.mode, on_prey)
        if not self.prey_communicate:
            return reward
        escaped = jnp.where(jnp.any(on_prey), 0.0, PREY_REWARD)
        return jnp.concatenate([reward, jnp.broadcast_to(escaped, (self.n_prey,))])

    def _success(self, on_prey: jax.Array) -> jax.Array:
        if self.mode == "competitive":
            return jnp.zeros((), bool)
        return jnp.all(on_prey)

    def make_viewer(self) -> Viewer:
        """The viewer of this grid; matplotlib is first needed here."""
        from jaxmethods.envs.team.predator_prey.viewer import PredatorPreyViewer

        return PredatorPreyViewer(self.dim, self.vision)
