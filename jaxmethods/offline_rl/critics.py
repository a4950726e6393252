"""What the offline RL methods share: twin critics, moving averages, an optimizer a network.

Two critics are one pytree with a leading axis of two.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmethods.method import gradient_step
from jaxmethods.offline_rl.policies import QParams, init_q, q_value


def init_twins(key: jax.Array, n_states: int, n_actions: int, hidden: int) -> QParams:
    """Two fresh critics.

    Args:
        key: [] typed random key.
        n_states: S.
        n_actions: A.
        hidden: units of the hidden layers.

    Returns:
        Parameters, leaves [2, ...].
    """
    keys = jax.random.split(key, 2)
    return jax.vmap(lambda one: init_q(one, n_states, n_actions, hidden))(keys)


def twin_values(twins: QParams, states: jax.Array, actions: jax.Array) -> jax.Array:
    """q1 and q2, [2, ...], of states [..., S] and actions [..., A]."""
    return jax.vmap(q_value, (0, None, None))(twins, states, actions)


def separate(twins: QParams, scale: jax.Array | float = 1.0) -> tuple[QParams, QParams]:
    """The two critics by themselves, their values multiplied by `scale`."""
    *hidden, (weights, biases) = twins
    scaled = (*hidden, (weights * scale, biases * scale))
    first = jax.tree.map(lambda leaf: leaf[0], scaled)
    return first, jax.tree.map(lambda leaf: leaf[1], scaled)


def moving_average(old: Any, new: Any, rate: float) -> Any:
    """(1 - rate) old + rate new, leaf by leaf."""
    return jax.tree.map(lambda a, b: (1.0 - rate) * a + rate * b, old, new)


def bootstrapped(
    rewards: jax.Array, terminals: jax.Array, next_values: jax.Array, discount: float
) -> jax.Array:
    """r + gamma (1 - terminal) V(s'), without gradient.

    Args:
        rewards: r [B].
        terminals: [B], 1 where the episode ended.
        next_values: V(s') [B].
        discount: gamma.

    Returns:
        [B].
    """
    return jax.lax.stop_gradient(rewards + discount * (1.0 - terminals) * next_values)


def squared_error(values: jax.Array, targets: jax.Array) -> jax.Array:
    """Sum over the critics of the mean squared error; values [2, B], targets [B]."""
    return jnp.sum(jnp.mean(jnp.square(values - targets), axis=-1))


def apply_each(optimizers: Any, gradients: Any, moments: Any, networks: Any) -> tuple[Any, Any]:
    """Steps every network of a NamedTuple with its own optimizer.

    Args:
        optimizers: one for every network, in their order.
        gradients: in the structure of `networks`.
        moments: the optimizers' states.
        networks: what is updated.

    Returns:
        (networks, optimizer states) after it.
    """
    updated, states = [], []
    for optimizer, gradient, moment, network in zip(
        optimizers, gradients, moments, networks, strict=True
    ):
        network, moment = gradient_step(optimizer, gradient, moment, network)
        updated.append(network)
        states.append(moment)
    return type(networks)(*updated), type(networks)(*states)
