"""A controller that swings the pendulum up: pumps energy, then balances.

The energy E = velocity^2 / 2 + 15 cos(angle) changes at the rate 3 torque velocity, and E = 15 is
a swing that comes to rest upright. Far from the top the torque pushes E toward 15 (Astrom and
Furuta, "Swinging up a pendulum by energy control", Automatica 2000); near the top linear feedback
takes over.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmethods.envs.control.pendulum.env import GRAVITY, MAX_TORQUE

UPRIGHT_ENERGY = 1.5 * GRAVITY


def swing_up(observation: jax.Array) -> jax.Array:
    """Actions [..., 1] in [-1, 1] for observations [..., 3] of `Pendulum`.

    Args:
        observation: [..., 3] of `Pendulum`.

    Returns:
        Actions [..., 1] in [-1, 1], in the observation's type.
    """
    cosine, sine, velocity = jnp.moveaxis(observation, -1, 0)
    energy = 0.5 * velocity**2 + UPRIGHT_ENERGY * cosine
    # At rest any direction will do, but one must be taken.
    direction = jnp.where(velocity == 0.0, 1.0, velocity)
    pump = (UPRIGHT_ENERGY - energy) * direction
    balance = -10.0 * jnp.arctan2(sine, cosine) - 2.0 * velocity
    near = (cosine > 0.85) & (jnp.abs(energy - UPRIGHT_ENERGY) < 3.0)
    return jnp.clip(jnp.where(near, balance, pump) / MAX_TORQUE, -1.0, 1.0)[..., None]
