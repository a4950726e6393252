"""State of Predator-Capture-Prey."""

from __future__ import annotations

from typing import NamedTuple

import jax


class State(NamedTuple):
    """P perception agents, C capture agents and one prey; positions are (row, column)."""

    perception: jax.Array
    """[P, 2] int32."""
    capture: jax.Array
    """[C, 2] int32."""
    prey: jax.Array
    """[1, 2] int32; it never moves."""
    reached: jax.Array
    """[P + C] bool: agents that have stood on the prey, perception agents first."""
    captured: jax.Array
    """[C] bool: capture agents that have captured it."""
    step_count: jax.Array
    """[] int32: steps since the episode began."""
    key: jax.Array
    """[] typed random key, the source of the next episode at automatic reset."""
