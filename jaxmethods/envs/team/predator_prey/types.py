"""State of Predator-Prey."""

from __future__ import annotations

from typing import NamedTuple

import jax


class State(NamedTuple):
    """n predators and p prey on a grid; positions are (row, column)."""

    predators: jax.Array
    """[n, 2] int32."""
    prey: jax.Array
    """[p, 2] int32; prey never moves."""
    reached: jax.Array
    """[n] bool: predators that have stood on a prey; they don't move any more."""
    step_count: jax.Array
    """[] int32: steps since the episode began."""
    key: jax.Array
    """[] typed random key, the source of the next episode at automatic reset."""
