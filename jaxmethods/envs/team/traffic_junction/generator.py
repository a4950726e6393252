"""First states and arriving cars of Traffic Junction."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmethods.envs.team.grid import below
from jaxmethods.envs.team.traffic_junction.types import Arrivals, State


def empty_roads(n_cars: int, add_rate: jax.Array | float, key: jax.Array) -> State:
    """The first state of every episode: all cars outside."""
    return State(
        alive=jnp.zeros(n_cars, bool),
        wait=jnp.zeros(n_cars, jnp.int32),
        last_action=jnp.zeros(n_cars, jnp.int32),
        route=jnp.full(n_cars, -1, jnp.int32),
        route_position=jnp.full(n_cars, -1, jnp.int32),
        location=jnp.zeros((n_cars, 2), jnp.int32),
        completed=jnp.zeros(n_cars, bool),
        crashed=jnp.zeros((), bool),
        add_rate=jnp.asarray(add_rate, jnp.float32),
        step_count=jnp.zeros((), jnp.int32),
        key=key,
    )


def draw_arrivals(
    key: jax.Array, alive: jax.Array, add_rate: jax.Array, entries: int, routes_per_entry: int
) -> Arrivals:
    """Draws the cars that enter in one step, entry after entry.

    At each entry, while there is a free slot, a car enters with probability `add_rate`, into a
    free slot and onto a route of that entry that are both drawn uniformly.

    Args:
        key: [] typed random key.
        alive: [n] bool, the slots in use.
        add_rate: [] float32.
        entries: G.
        routes_per_entry: routes that begin at each entry.

    Returns:
        For each entry, the slot of the car that enters, -1 for none, and its route's number there:
        [G] int32 each.
    """
    chance, slot, path = jax.random.bits(key, (3, entries), jnp.uint32)
    # 24 bits are what float32 holds exactly: a rate of 1 always lets a car in, 0 never.
    wants = (chance >> 8).astype(jnp.float32) * 2.0**-24 < add_rate

    def enter(alive: jax.Array, entry: tuple[jax.Array, jax.Array]):
        wants, word = entry
        free = jnp.cumsum(~alive)
        chosen = ~alive & (free == below(word, free[-1]) + 1) & wants
        return alive | chosen, jnp.where(jnp.any(chosen), jnp.argmax(chosen), -1)

    cars = jax.lax.scan(enter, alive, (wants, slot), unroll=True)[1]
    return Arrivals(cars.astype(jnp.int32), below(path, jnp.full(entries, routes_per_entry)))
