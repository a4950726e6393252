"""Predator-Capture-Prey of the HetNet line of work, as CommFormer uses it."""

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
from jaxmethods.envs.team.predator_capture_prey.generator import RandomGenerator, initial_state
from jaxmethods.envs.team.predator_capture_prey.observer import BLIND, agents_view
from jaxmethods.envs.team.predator_capture_prey.types import State
from jaxmethods.envs.team.predator_prey.observer import observation_size
from jaxmethods.envs.team.predator_prey.rewards import MODES, TIME_COST, agent_rewards, on_any_prey
from jaxmethods.envs.team.types import Observation, one_more

CAPTURE = 5
ON_PREY_COST = -0.025


class PredatorCapturePrey(TeamEnvironment):
    """Perception agents find a prey that capture agents, blind to it, must stand on and capture.

    - observation: `Observation`
        - `agents_view` [N, (2v+1)^2 (dim^2+4)] int8: the window around each agent, perception
          agents first, see `observer.agents_view`. N = n_perception + n_capture.
        - `action_mask` [N, 6] bool: always True.
        - `step_count` [] int32.
    - action [N] int32: 0 up, 1 right, 2 down, 3 left, 4 stay, 5 capture. All agents move at
      once, walls stop them, cells can be shared. An agent that has reached the prey doesn't
      move any more. Capture succeeds for a capture agent that stands on the prey when it acts;
      otherwise, and for perception agents, it does nothing.
    - reward [N] float32: -0.05 off the prey. On it 0 in mixed mode, 0.05 K in cooperative and
      0.05 / K in competitive mode, K the number of agents there. A capture agent that hasn't
      captured yet gets -0.05 wherever it is; with `second_reward` it gets -0.025 on the prey.
    - termination: all have reached the prey and all capture agents have captured it, in mixed
      mode only. `time_limit` truncates (discount 1).
    - extras: `success` [] bool: the episode terminated with every agent on the prey.

    ```python
    env = PredatorCapturePrey.preset("reference")
    state, timestep = jax.jit(env.reset)(jax.random.key(0))
    state, timestep = jax.jit(env.step)(state, env.action_spec.generate_value())
    ```

    `presets`: "reference" is that of the published CommFormer runs; the larger two are
    Predator-Prey's team sizes with one agent turned into a capture agent.
    """

    presets = MappingProxyType(
        {
            "reference": {"n_perception": 2, "n_capture": 1, "dim": 5, "vision": 1},
            "medium": {"n_perception": 4, "n_capture": 1, "dim": 10, "vision": 1},
            "hard": {"n_perception": 9, "n_capture": 1, "dim": 20, "vision": 1},
        }
    )

    def __init__(
        self,
        n_perception: int = 2,
        n_capture: int = 1,
        dim: int = 5,
        vision: int = 1,
        capture_vision: int = BLIND,
        mode: str = "mixed",
        second_reward: bool = False,
        time_limit: int | None = None,
        generator: Callable[[jax.Array], State] | None = None,
        viewer: Viewer | None = None,
    ) -> None:
        """Builds the environment.

        Args:
            n_perception: P, in [1, 127].
            n_capture: C, in [1, 127].
            dim: side of the grid, at most 180.
            vision: v, cells that perception agents see in each direction.
            capture_vision: -1: capture agents are blind; a in [0, v]: they see a cells in each
                direction.
            mode: "mixed", "cooperative" or "competitive".
            second_reward: pay capture agents half the cost once they have reached the prey.
            time_limit: steps after which an episode is truncated; None: never.
            generator: key to first `State`; by default distinct cells, uniformly.
            viewer: draws states; by default `viewer.PredatorCapturePreyViewer`.

        Raises:
            ValueError: one line naming the argument, what came and what was expected.
        """
        self.n_perception = arguments.check_integer("n_perception", n_perception, 1, 127)
        self.n_capture = arguments.check_integer("n_capture", n_capture, 1, 127)
        self.dim = arguments.check_integer("dim", dim, 1, grid.MAX_DIM)
        self.vision = arguments.check_integer("vision", vision, 0)
        self.capture_vision = arguments.check_integer(
            "capture_vision", capture_vision, BLIND, self.vision
        )
        self.mode = arguments.check_choice("mode", mode, MODES)
        self.second_reward = arguments.check_flag("second_reward", second_reward)
        team = self.n_perception + self.n_capture
        if team + 1 > self.dim**2:
            raise ValueError(
                f"dim must give a cell to each of {team} agents and the prey, "
                f"got {self.dim} ({self.dim**2} cells)"
            )
        if generator is None:
            generator = RandomGenerator(self.n_perception, self.n_capture, self.dim)
        else:
            arguments.check_generator(
                generator,
                {
                    "perception": (self.n_perception, 2),
                    "capture": (self.n_capture, 2),
                    "prey": (1, 2),
                },
            )
        self._generator = generator
        super().__init__(
            num_agents=team,
            num_actions=len(grid.MOVES) + 1,
            observation_size=observation_size(self.dim, self.vision),
            view_bounds=(-1, max(self.n_perception, self.n_capture)),
            view_dtype=jnp.int8,
            time_limit=arguments.check_time_limit(time_limit),
            viewer=viewer,
        )

    @property
    def episode_cap(self) -> int:
        """Steps an evaluation episode may take: 4 dim, as in Predator-Prey."""
        return 4 * self.dim

    def __repr__(self) -> str:
        return (
            f"PredatorCapturePrey(n_perception={self.n_perception}, n_capture={self.n_capture}, "
            f"dim={self.dim}, vision={self.vision}, capture_vision={self.capture_vision})"
        )

    def reset(self, key: jax.Array) -> tuple[State, TimeStep[Observation]]:
        """Begins an episode from a [] typed random key."""
        return self._begin(self._generator(key))

    def reset_from(
        self, perception: jax.Array, capture: jax.Array, prey: jax.Array, key: jax.Array
    ) -> tuple[State, TimeStep[Observation]]:
        """Begins an episode with everybody in given places.

        Args:
            perception: [P, 2] (row, column) of the perception agents.
            capture: [C, 2] of the capture agents.
            prey: [1, 2].
            key: [] typed random key that the state carries.

        Returns:
            The first state and its time step.
        """
        return self._begin(initial_state(perception, capture, prey, key))

    def step(self, state: State, action: jax.Array) -> tuple[State, TimeStep[Observation]]:
        """Lets every agent act; `action` is [N] int32."""
        agents = jnp.concatenate([state.perception, state.capture])
        tries = action[self.n_perception :] == CAPTURE
        captured = state.captured | (tries & on_any_prey(state.capture, state.prey))
        moved = grid.move(agents, action, self.dim)
        agents = jnp.where(state.reached[:, None], agents, moved)
        on_prey = on_any_prey(agents, state.prey)
        reached = state.reached | on_prey
        state = State(
            perception=agents[: self.n_perception],
            capture=agents[self.n_perception :],
            prey=state.prey,
            reached=reached,
            captured=captured,
            step_count=one_more(state.step_count),
            key=state.key,
        )
        done = jnp.all(reached) & jnp.all(captured) & (self.mode == "mixed")
        return state, self._next(
            self._observe(state),
            reward=self._reward(on_prey, reached, captured),
            terminated=done,
            extras={"success": done & jnp.all(on_prey)},
        )

    def _begin(self, state: State) -> tuple[State, TimeStep[Observation]]:
        return state, self._first(self._observe(state), {"success": jnp.zeros((), bool)})

    def _observe(self, state: State) -> Observation:
        view = agents_view(state, self.dim, self.vision, self.capture_vision)
        return self._observation(view, state.step_count)

    def _reward(self, on_prey: jax.Array, reached: jax.Array, captured: jax.Array) -> jax.Array:
        """[N] float32 from [N] bool, [N] bool and [C] bool."""
        reward = agent_rewards(self.mode, on_prey)
        perception, capture = jnp.split(reward, [self.n_perception])
        if self.second_reward:
            waiting = reached[self.n_perception :] & ~captured
            capture = jnp.where(waiting, ON_PREY_COST, capture)
        else:
            capture = jnp.where(captured, capture, TIME_COST)
        return jnp.concatenate([perception, capture])

    def make_viewer(self) -> Viewer:
        """The viewer of this grid; matplotlib is first needed here."""
        from jaxmethods.envs.team.predator_capture_prey.viewer import PredatorCapturePreyViewer

        return PredatorCapturePreyViewer(self.dim, self.vision, self.capture_vision)
