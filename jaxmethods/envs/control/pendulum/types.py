"""State of Pendulum."""

from __future__ import annotations

from typing import NamedTuple

import jax


class State(NamedTuple):
    """A rod that turns around one end."""

    angle: jax.Array
    """[] rad in [-pi, pi): 0 is upright."""
    velocity: jax.Array
    """[] rad/s in [-8, 8]."""
    step_count: jax.Array
    """[] int32: steps since the episode began."""
    key: jax.Array
    """[] typed random key, the source of the next episode at automatic reset."""
