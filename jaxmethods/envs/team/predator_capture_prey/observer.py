"""What the agents of Predator-Capture-Prey see."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.envs.team import grid
from jaxmethods.envs.team.predator_capture_prey.types import State

BLIND = -1
"""`capture_vision` of capture agents that see where they are but not what is there."""


def agents_view(state: State, dim: int, vision: int, capture_vision: int) -> jax.Array:
    """The window around each agent.

    Channels of a cell: its number one-hot in [0, dim^2), or dim^2 + 1 off the grid; at dim^2 the
    number of capture agents, at dim^2 + 2 that of prey and at dim^2 + 3 that of perception agents.
    What a capture agent can't see is -1, see `hidden_from_capture`.

    Args:
        state: where everybody is.
        dim: side of the grid.
        vision: v of the perception agents: cells seen to each side.
        capture_vision: that of the capture agents, at most v.

    Returns:
        [P + C, (2v + 1)^2 (dim^2 + 4)] int8.
    """
    channels = dim**2 + 4
    rows, columns = grid.window_cells(jnp.concatenate([state.perception, state.capture]), vision)
    view = grid.encode_windows(
        grid.window_classes(rows, columns, dim, dim, outside=dim**2 + 1),
        {
            dim**2: grid.window_counts(rows, columns, state.capture),
            dim**2 + 2: grid.window_counts(rows, columns, state.prey),
            dim**2 + 3: grid.window_counts(rows, columns, state.perception),
        },
        channels,
    )
    hidden = np.zeros(view.shape, bool)
    hidden[len(state.perception) :] = hidden_from_capture(dim, vision, capture_vision)
    return jnp.where(hidden, jnp.int8(-1), view)


def hidden_from_capture(dim: int, vision: int, capture_vision: int) -> np.ndarray:
    """Which of the D numbers a capture agent can't see: [D] bool.

    Blind agents still see the numbers of the cells around them (all zero off the grid). With
    `capture_vision` a >= 0 it is everything outside the central (2a+1) x (2a+1) cells.
    """
    side, channels = 2 * vision + 1, dim**2 + 4
    hidden = np.zeros((side, side, channels), bool)
    if capture_vision == BLIND:
        hidden[..., dim**2 :] = True
    else:
        seen = slice(vision - capture_vision, vision + capture_vision + 1)
        hidden[:] = True
        hidden[seen, seen] = False
    return hidden.ravel()
