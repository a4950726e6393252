"""The linear-quadratic regulator a = -K s of a linear system, from its Riccati equation.

P = Q + A' P A - A' P B K,    K = (R + B' P B)^-1 B' P A,    Q = I, R = 0.1 I
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.envs.control.linear.env import Linear

EFFORT = 0.1
"""What an action costs beside a state, so that most of them stay within [-1, 1]."""
ROUNDS = 500


def regulator(env: Linear) -> Callable[[jax.Array], jax.Array]:
    """Solves the Riccati equation of a system by iteration; on the host, in float64.

    Args:
        env: the system, with A [S, S] and B [S, A].

    Returns:
        The controller: observations [..., S] -> actions [..., A] float32, clipped to [-1, 1].
    """
    a, b = np.asarray(env.dynamics, np.float64), np.asarray(env.inputs, np.float64)
    value = np.eye(len(a))
    gain = np.zeros(b.T.shape)
    for _ in range(ROUNDS):
        gain = np.linalg.solve(EFFORT * np.eye(b.shape[1]) + b.T @ value @ b, b.T @ value @ a)
        value = np.eye(len(a)) + a.T @ value @ (a - b @ gain)
    transposed = jnp.asarray(gain.T, jnp.float32)

    def act(observation: jax.Array) -> jax.Array:
        return jnp.clip(-observation @ transposed, -1.0, 1.0)

    return act
