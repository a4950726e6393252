"""The arrival rate as training goes on."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from jaxmethods.envs.arguments import check_choice
from jaxmethods.envs.team.traffic_junction.types import State

ADD_RATES = MappingProxyType({"easy": (0.1, 0.3), "medium": (0.05, 0.2), "hard": (0.02, 0.05)})
"""First and last arrival rate of each preset."""

RATE_STEP = 0.01


def curriculum(epoch: jax.Array | int, preset: str, start: int = 250, end: int = 1250) -> jax.Array:
    """Arrival rate [] float32 in `epoch`, traceable in `epoch`.

    The exact rate grows linearly, once an epoch in [start, end), from the first to the last of
    `ADD_RATES[preset]`; the rate is that rounded down to a multiple of 0.01.

    Args:
        epoch: [] integer.
        preset: a name of `ADD_RATES`.
        start: epoch from which the rate grows.
        end: epoch at which it is the last one.

    Returns:
        [] float32.
    """
    first, last = ADD_RATES[check_choice("preset", preset, ADD_RATES)]
    grown = jnp.clip(jnp.asarray(epoch) - start + 1, 0, end - start)
    steps = first / RATE_STEP + grown * ((last - first) / RATE_STEP / (end - start))
    # A whole number of steps must not be rounded down for want of the last bit.
    return (RATE_STEP * jnp.floor(steps + 1e-3)).astype(jnp.float32)


def with_add_rate(state: State, add_rate: Any) -> State:
    """The state, or batch of states, with another arrival rate (an array: nothing retraces).

    Args:
        state: of `TrafficJunction`, one or a batch.
        add_rate: arrival rate, float or [].

    Returns:
        The same state with that rate.
    """
    rate = jnp.asarray(add_rate, state.add_rate.dtype)
    return state._replace(add_rate=jnp.broadcast_to(rate, state.add_rate.shape))
