"""A controller that pushes the puck to the goal: a spring towards it, and a brake."""

from __future__ import annotations

import jax
import jax.numpy as jnp

STIFFNESS = 3.0
BRAKE = 2.5


def approach(observation: jax.Array) -> jax.Array:
    """Pushes the puck towards the goal and brakes it.

    Args:
        observation: [..., 6] of `PointMass`.

    Returns:
        Actions [..., 2] in [-1, 1], in the observation's type.
    """
    velocity, way = observation[..., 2:4], observation[..., 4:6]
    return jnp.clip(STIFFNESS * way - BRAKE * velocity, -1.0, 1.0)
