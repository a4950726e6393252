"""Initial states of Predator-Prey."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxmethods.envs.team.grid import sample_cells
from jaxmethods.envs.team.predator_prey.types import State


@dataclass(frozen=True)
class RandomGenerator:
    """n predators, then p prey on distinct cells, uniformly over all placements."""

    n_predators: int
    n_prey: int
    dim: int

    def __call__(self, key: jax.Array) -> State:
        """Draws the first state of an episode from `key` ([] typed random key)."""
        key, draw = jax.random.split(key)
        cells = sample_cells(draw, self.n_predators + self.n_prey, self.dim)
        return initial_state(cells[: self.n_predators], cells[self.n_predators :], key)


def initial_state(predators: jax.Array, prey: jax.Array, key: jax.Array) -> State:
    """The first state with predators [n, 2] and prey [p, 2] in these places."""
    return State(
        predators=jnp.asarray(predators, jnp.int32),
        prey=jnp.asarray(prey, jnp.int32),
        reached=jnp.zeros(len(predators), bool),
        step_count=jnp.zeros((), jnp.int32),
        key=key,
    )
