"""Inverse dynamics: the aligned action that leads from one aligned state to the next.

    a_t = f(s_t, s_{t+1}),    L_inv = mean (f(s_t, s_{t+1}) - a_t)^2

Ajay et al. 2023 (Decision Diffuser); Hu et al., VQ-CD, arXiv 2410.15698, section 3.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmethods.vqcd.spaces.perceptron import init_perceptron, perceptron
from jaxmethods.vqcd.types import Params


def init_inverse(key: jax.Array, channels: int, actions: int, hidden: int = 256) -> Params:
    """Draws the model's parameters.

    Args:
        key: [] typed key.
        channels: C of an aligned state.
        actions: A of an aligned action.
        hidden: width of the two hidden layers.

    Returns:
        {"dense0", "dense1", "dense2"}, each with `weight` [in, out] and `bias` [out], float32.
    """
    return init_perceptron(key, (2 * channels, hidden, hidden, actions))


def inverse_dynamics(params: Params, states: jax.Array, following: jax.Array) -> jax.Array:
    """Actions [..., A] between states [..., C] and those that follow them [..., C]."""
    return perceptron(params, jnp.concatenate([states, following], axis=-1))


def inverse_loss(params: Params, states: jax.Array, actions: jax.Array) -> jax.Array:
    """The mean squared error [] over windows of states [B, T, C] and actions [B, T, A]."""
    predicted = inverse_dynamics(params, states[:, :-1], states[:, 1:])
    return jnp.square(predicted - actions[:, :-1]).mean()
