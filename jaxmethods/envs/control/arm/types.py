"""State of Arm."""

from __future__ import annotations

from typing import NamedTuple

import jax


class State(NamedTuple):
    """A chain of three links, each turned against the one before."""

    angles: jax.Array
    """[3] rad, of each link against the one before."""
    velocities: jax.Array
    """[3] rad/s"""
    target: jax.Array
    """[2]"""
    step_count: jax.Array
    """[] int32: steps since the episode began."""
    key: jax.Array
    """[] typed random key, the source of the next episode at automatic reset."""
