"""A controller that pulls the tip to the target: the Jacobian's transpose, and a brake.

A force f on the tip turns joint j by f . d tip / d angle_j; the derivative is the vector from the
joint to the tip, turned by 90 degrees.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmethods.envs.control.arm.env import LENGTHS

STIFFNESS = 6.0
BRAKE = 0.7


def reach(observation: jax.Array) -> jax.Array:
    """Pulls the tip towards the target and brakes the joints.

    Args:
        observation: [..., 13] of `Arm`.

    Returns:
        Actions [..., 3] in [-1, 1], in the observation's type.
    """
    cosines, sines = observation[..., 0:3], observation[..., 3:6]
    velocities, way = observation[..., 6:9], observation[..., 11:13]
    links = jnp.stack([cosines, sines], -1) * jnp.asarray(LENGTHS)[:, None]  # [..., 3, 2]
    # From joint j to the tip are the links j, j + 1, ...
    lever = jnp.cumsum(links[..., ::-1, :], axis=-2)[..., ::-1, :]
    turned = jnp.stack([-lever[..., 1], lever[..., 0]], -1)
    torque = STIFFNESS * (turned * way[..., None, :]).sum(-1) - BRAKE * velocities
    return jnp.clip(torque, -1.0, 1.0)
