"""State of Traffic Junction and the cars that enter it."""

from __future__ import annotations

from typing import NamedTuple

import jax


class State(NamedTuple):
    """n slots for cars; a slot is alive while its car is on the road."""

    alive: jax.Array
    """[n] bool."""
    wait: jax.Array
    """[n] int32: steps since the car entered; 0 outside."""
    last_action: jax.Array
    """[n] int32: 0 gas, 1 brake; a new car inherits it from the slot."""
    route: jax.Array
    """[n] int32: number of the route; -1 before the slot's first car."""
    route_position: jax.Array
    """[n] int32: cell of the route; -1 before the slot's first car."""
    location: jax.Array
    """[n, 2] int32 (row, column); (0, 0), which is no road, outside."""
    completed: jax.Array
    """[n] bool: the slot's car left at the end of its route in this very step."""
    crashed: jax.Array
    """[] bool: there was a collision in this episode."""
    add_rate: jax.Array
    """[] float32: probability that a car enters at an entry in a step."""
    step_count: jax.Array
    """[] int32: steps since the episode began."""
    key: jax.Array
    """[] typed random key: the arrivals of the episode and the source of the next one."""


class Arrivals(NamedTuple):
    """What enters in one step, at most one car at each of G entries."""

    car: jax.Array
    """[G] int32: slot of the new car, -1 for none."""
    path: jax.Array
    """[G] int32: which of the entry's routes it takes; anything for none."""
