"""The students of the cross-architecture table as one array program: depth is an axis.

A padded policy has all layers of the deepest one. A gate opens each of the middle layers, or lets
its input through unchanged, and one more gate adds the residual connection:

    h <- gate_i relu(h W_i + b_i) + (1 - gate_i) h,      out = (h + skip h_1) W_L + b_L

Layers behind a closed gate get no gradient: a padded student computes and learns exactly what the
plain policy of that depth does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmethods.obd.students import train_students
from jaxmethods.obd.types import SynSet
from jaxmethods.offline_rl.policies import LOG_STD_BOUNDS, Policy, PolicyParams, init_policy


class Architecture(NamedTuple):
    """A policy of the paper's cross table."""

    n_layers: int
    """Linear layers."""
    residual: bool = False


ARCHITECTURES = {
    "2": Architecture(2),
    "3": Architecture(3),
    "4": Architecture(4),
    "5": Architecture(5),
    "6": Architecture(6),
    "residual": Architecture(4, residual=True),
}
"""Linear layers, or the 4-layer residual policy."""
DEPTH = max(architecture.n_layers for architecture in ARCHITECTURES.values())


class Gates(NamedTuple):
    """Which layers of a padded policy are there."""

    layer: jax.Array
    """[..., DEPTH - 2] bool, of the middle layers."""
    skip: jax.Array
    """[...] bool: the residual connection."""


def gates_of(*architectures: Architecture) -> Gates:
    """Gates with one leading axis [len(architectures)]."""
    middle = jnp.array([architecture.n_layers - 2 for architecture in architectures])
    skip = jnp.array([architecture.residual for architecture in architectures])
    return Gates(jnp.arange(DEPTH - 2) < middle[:, None], skip)


def padded_policy(gates: Gates, hidden: int = 256) -> Policy:
    """The architecture that `gates` (of one policy) describe, with padded parameters."""

    def init(key: jax.Array, n_states: int, n_actions: int) -> PolicyParams:
        return init_policy(key, n_states, n_actions, hidden, DEPTH)

    def heads(params: PolicyParams, states: jax.Array) -> tuple[jax.Array, jax.Array]:
        (weights, biases), *middle, (last_weights, last_biases) = params.layers
        first = hidden = jax.nn.relu(states @ weights + biases)
        for index, (weights, biases) in enumerate(middle):
            deeper = jax.nn.relu(hidden @ weights + biases)
            hidden = jnp.where(gates.layer[index], deeper, hidden)
        hidden = jnp.where(gates.skip, hidden + first, hidden)
        mean, raw = jnp.split(hidden @ last_weights + last_biases, 2, axis=-1)
        return mean, jnp.clip(params.log_std_mult * raw + params.log_std_off, *LOG_STD_BOUNDS)

    def sample(params: PolicyParams, states: jax.Array, noise: jax.Array) -> jax.Array:
        mean, log_std = heads(params, states)
        return jnp.tanh(mean + jnp.exp(log_std) * noise)

    def mode(params: PolicyParams, states: jax.Array) -> jax.Array:
        return jnp.tanh(heads(params, states)[0])

    return Policy(init, sample, mode)


def plain(params: PolicyParams, architecture: Architecture) -> PolicyParams:
    """The plain policy of one architecture out of padded parameters, any leading axes."""
    first, *middle, last = params.layers
    return params._replace(layers=(first, *middle[: architecture.n_layers - 2], last))


def cross_architectures(
    key: jax.Array,
    syn: SynSet,
    architectures: tuple[Architecture, ...] = tuple(ARCHITECTURES.values()),
    n_students: int = 10,
    optimizer: optax.GradientTransformation | None = None,
    steps: int = 500,
    hidden: int = 256,
) -> Any:
    """Students of every architecture in one program.

    Args:
        key: [] typed random key.
        syn: the set they clone.
        architectures: depth and residual connection of each.
        n_students: K of every architecture, static.
        optimizer: from optax; None: that of `train_students`.
        steps: full-batch steps, static.
        hidden: width of all layers, static.

    Returns:
        Padded parameters [len(architectures), K, ...]; `plain` makes one architecture's policy of
        a slice, `padded_policy` evaluates them all at once.
    """

    def train(gates: Gates) -> Any:
        policy = padded_policy(gates, hidden)
        return train_students(key, syn, policy, n_students, optimizer, steps)

    return jax.vmap(train)(gates_of(*architectures))
