"""State of PointMass."""

from __future__ import annotations

from typing import NamedTuple

import jax


class State(NamedTuple):
    """A puck on a plane, and where it should go."""

    position: jax.Array
    """[2]"""
    velocity: jax.Array
    """[2]"""
    goal: jax.Array
    """[2]"""
    step_count: jax.Array
    """[] int32: steps since the episode began."""
    key: jax.Array
    """[] typed random key, the source of the next episode at automatic reset."""
