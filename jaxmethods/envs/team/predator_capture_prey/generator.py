"""Initial states of Predator-Capture-Prey."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxmethods.envs.team.grid import sample_cells
from jaxmethods.envs.team.predator_capture_prey.types import State


@dataclass(frozen=True)
class RandomGenerator:
    """Perception agents, capture agents and the prey on distinct cells, uniformly."""

    n_perception: int
    n_capture: int
    dim: int

    def __call__(self, key: jax.Array) -> State:
        """Draws the first state of an episode from `key` ([] typed random key)."""
        key, draw = jax.random.split(key)
        agents = self.n_perception + self.n_capture
        cells = sample_cells(draw, agents + 1, self.dim)
        perception, capture = cells[: self.n_perception], cells[self.n_perception : agents]
        return initial_state(perception, capture, cells[agents:], key)


def initial_state(
    perception: jax.Array, capture: jax.Array, prey: jax.Array, key: jax.Array
) -> State:
    """The first state with everybody in given places.

    Args:
        perception: [P, 2] (row, column) of the perception agents.
        capture: [C, 2] of the capture agents.
        prey: [1, 2].
        key: [] typed random key that the state carries.

    Returns:
        Nobody has reached or captured anything, step 0.
    """
    return State(
        perception=jnp.asarray(perception, jnp.int32),
        capture=jnp.asarray(capture, jnp.int32),
        prey=jnp.asarray(prey, jnp.int32),
        reached=jnp.zeros(len(perception) + len(capture), bool),
        captured=jnp.zeros(len(capture), bool),
        step_count=jnp.zeros((), jnp.int32),
        key=key,
    )
