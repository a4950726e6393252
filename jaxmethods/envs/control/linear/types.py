"""State of Linear."""

from __future__ import annotations

from typing import NamedTuple

import jax


class State(NamedTuple):
    """A point in the space of a linear system."""

    place: jax.Array
    """[S]"""
    step_count: jax.Array
    """[] int32: steps since the episode began."""
    key: jax.Array
    """[] typed random key, the source of the next episode at automatic reset."""
