"""What the agents of Predator-Prey see."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmethods.envs.team import grid
from jaxmethods.envs.team.predator_prey.types import State


def observation_size(dim: int, vision: int) -> int:
    """D = (2v+1)^2 (dim^2 + 4)."""
    return (2 * vision + 1) ** 2 * (dim**2 + 4)


def agents_view(state: State, dim: int, vision: int, prey_communicate: bool) -> jax.Array:
    """The window around each predator (and prey, if it communicates).

    Channels of a cell: its number one-hot in [0, dim^2), or dim^2 + 1 off the grid; at dim^2 + 2
    the number of prey and at dim^2 + 3 that of predators, the observer included. Channel dim^2
    stays empty.

    Args:
        state: where everybody is.
        dim: side of the grid.
        vision: v, cells seen to each side.
        prey_communicate: whether prey are agents too, behind the predators.

    Returns:
        [N, (2v + 1)^2 (dim^2 + 4)] int8.
    """
    centers = state.predators
    if prey_communicate:
        centers = jnp.concatenate([state.predators, state.prey])
    rows, columns = grid.window_cells(centers, vision)
    return grid.encode_windows(
        grid.window_classes(rows, columns, dim, dim, outside=dim**2 + 1),
        {
            dim**2 + 2: grid.window_counts(rows, columns, state.prey),
            dim**2 + 3: grid.window_counts(rows, columns, state.predators),
        },
        channels=dim**2 + 4,
    )
