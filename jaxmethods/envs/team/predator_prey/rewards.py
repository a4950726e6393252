"""What agents are paid on and off their prey."""

from __future__ import annotations

import jax
import jax.numpy as jnp

MODES = ("mixed", "cooperative", "competitive")
TIME_COST = -0.05
PREY_REWARD = 0.05


def on_any_prey(agents: jax.Array, prey: jax.Array) -> jax.Array:
    """Which of the agents [N, 2] stand on one of the prey [p, 2]: [N] bool."""
    return jnp.any(jnp.all(agents[:, None] == prey, axis=-1), axis=-1)


def agent_rewards(mode: str, on_prey: jax.Array) -> jax.Array:
    """-0.05 off prey; on prey, with K = sum(on_prey), what the mode pays.

    Args:
        mode: "mixed": 0, "cooperative": 0.05 K, "competitive": 0.05 / K.
        on_prey: [N] bool.

    Returns:
        [N] float32.
    """
    arrived = jnp.sum(on_prey)
    if mode == "cooperative":
        paid = PREY_REWARD * arrived
    elif mode == "competitive":
        paid = PREY_REWARD / jnp.maximum(arrived, 1)
    else:
        paid = jnp.zeros(())
    return jnp.where(on_prey, paid, TIME_COST)
