r"""Students, teachers and critics of OBD: small multilayer perceptrons as plain pytrees.

A tanh-Gaussian policy maps a normalized state to the heads (m, l) of its last layer:

    log std = clip(mult * l + off, -20, 2),    a = tanh(m + std * eps),    eps ~ N(0, I)

`mult` and `off` are trained like the weights. Actions lie in [-1, 1]. The deterministic variant
outputs a = tanh(m) of a narrower network and ignores the noise.

Lei, Zhang and Tao, "Offline Behavior Distillation", NeurIPS 2024, arXiv 2410.22728, section 5.1;
the networks are those of its code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxmethods.models.initializers import orthogonal

LOG_STD_BOUNDS = (-20.0, 2.0)
Layer: TypeAlias = tuple[jax.Array, jax.Array]
"""Weights [in, out] and biases [out]; y = x @ weights + biases."""
QParams: TypeAlias = tuple[Layer, ...]
"""A critic: layers from [S + A] to [1], ReLU between them."""


class PolicyParams(NamedTuple):
    """A tanh-Gaussian policy; its depth is the number of layers."""

    layers: tuple[Layer, ...]
    """From [S] to [2 A]; ReLU between them."""
    log_std_mult: jax.Array
    """[] initially 1."""
    log_std_off: jax.Array
    """[] initially -1."""


class Policy(NamedTuple):
    """A policy architecture as three pure functions of its own pytree of parameters.

    One architecture is one object, however often it is asked for: as a static argument of a jitted
    function it is compiled once.
    """

    init: Callable[[jax.Array, int, int], Any]
    """(typed key, S, A) -> params."""
    sample: Callable[[Any, jax.Array, jax.Array], jax.Array]
    """(params, states [..., S], noise [..., A]) -> actions [..., A], differentiable in all."""
    mode: Callable[[Any, jax.Array], jax.Array]
    """(params, states [..., S]) -> deterministic actions [..., A]."""


def tanh_gaussian(n_layers: int = 4, hidden: int = 256, residual: bool = False) -> Policy:
    """The paper's student: `n_layers` linear layers of width `hidden`, orthogonal weights.

    `residual` adds the first hidden layer's output to the last one's (at least 3 layers).

    Args:
        n_layers: linear layers.
        hidden: their width.
        residual: add the first hidden layer's output to the last one's (at least 3 layers).

    Returns:
        Functions that make parameters and actions.

    Raises:
        ValueError: too few layers.
    """
    least = 3 if residual else 1
    if n_layers < least:
        raise ValueError(f"n_layers: expected at least {least}, got {n_layers}")
    return _tanh_gaussian(int(n_layers), int(hidden), bool(residual))


@cache
def _tanh_gaussian(n_layers: int, hidden: int, residual: bool) -> Policy:
    def init(key: jax.Array, n_states: int, n_actions: int) -> PolicyParams:
        return init_policy(key, n_states, n_actions, hidden, n_layers)

    def sample(params: PolicyParams, states: jax.Array, noise: jax.Array) -> jax.Array:
        return policy_sample(params, states, noise, residual)

    def mode(params: PolicyParams, states: jax.Array) -> jax.Array:
        return policy_mode(params, states, residual)

    return Policy(init, sample, mode)


def deterministic(hidden: Sequence[int] = (400, 300)) -> Policy:
    """The deterministic student of the published code: a = tanh(network(s)).

    Args:
        hidden: widths of the hidden layers.

    Returns:
        Functions that make parameters and actions.
    """
    return _deterministic(tuple(hidden))


@cache
def _deterministic(hidden: tuple[int, ...]) -> Policy:
    def init(key: jax.Array, n_states: int, n_actions: int) -> tuple[Layer, ...]:
        return init_deterministic(key, n_states, n_actions, hidden)

    def mode(params: tuple[Layer, ...], states: jax.Array) -> jax.Array:
        return jnp.tanh(mlp(params, states))

    def sample(params: tuple[Layer, ...], states: jax.Array, noise: jax.Array) -> jax.Array:
        del noise
        return mode(params, states)

    return Policy(init, sample, mode)


def init_policy(
    key: jax.Array, n_states: int, n_actions: int, hidden: int = 256, n_layers: int = 4
) -> PolicyParams:
    """A fresh tanh-Gaussian policy: orthogonal weights of gain sqrt(2), last layer included.

    Args:
        key: [] typed random key.
        n_states: S.
        n_actions: A.
        hidden: units of the hidden layers.
        n_layers: how many layers, the last included.

    Returns:
        Parameters in float32.
    """
    sizes = [n_states, *[hidden] * (n_layers - 1), 2 * n_actions]
    return PolicyParams(_orthogonal_layers(key, sizes), jnp.ones(()), -jnp.ones(()))


def init_deterministic(
    key: jax.Array, n_states: int, n_actions: int, hidden: Sequence[int] = (400, 300)
) -> tuple[Layer, ...]:
    """A fresh deterministic policy.

    Hidden weights are U(+-1/sqrt(out)), hidden biases 0.1, the last layer U(+-0.003). The published
    code takes the number of outputs for the fan-in; so do we.

    Args:
        key: [] typed random key.
        n_states: S.
        n_actions: A.
        hidden: units of the hidden layers.

    Returns:
        (weights [in, out], biases [out]) of every layer, float32.
    """
    sizes = [n_states, *hidden, n_actions]
    *hidden_keys, last_key, bias_key = jax.random.split(key, len(sizes))
    layers = []
    for layer_key, shape in zip(hidden_keys, pairwise(sizes), strict=False):
        bound = shape[1] ** -0.5
        weights = jax.random.uniform(layer_key, shape, minval=-bound, maxval=bound)
        layers.append((weights, jnp.full(shape[1], 0.1)))
    weights = jax.random.uniform(last_key, tuple(sizes[-2:]), minval=-3e-3, maxval=3e-3)
    biases = jax.random.uniform(bias_key, (n_actions,), minval=-3e-3, maxval=3e-3)
    return (*layers, (weights, biases))


def policy_heads(
    params: PolicyParams, states: jax.Array, residual: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Mean m and clipped log std, each [..., A], of states [..., S]."""
    mean, raw = jnp.split(mlp(params.layers, states, residual), 2, axis=-1)
    log_std = jnp.clip(params.log_std_mult * raw + params.log_std_off, *LOG_STD_BOUNDS)
    return mean, log_std


def policy_sample(
    params: PolicyParams, states: jax.Array, noise: jax.Array, residual: bool = False
) -> jax.Array:
    """tanh(m + std * noise): a sampled action where the noise is N(0, I).

    Args:
        params: the policy's.
        states: [..., S] normalized.
        noise: [..., A].
        residual: whether the policy has a residual connection; static.

    Returns:
        [..., A] in [-1, 1].
    """
    mean, log_std = policy_heads(params, states, residual)
    return jnp.tanh(mean + jnp.exp(log_std) * noise)


def policy_mode(params: PolicyParams, states: jax.Array, residual: bool = False) -> jax.Array:
    """The deterministic action tanh(m), [..., A]."""
    return jnp.tanh(jnp.split(mlp(params.layers, states, residual), 2, axis=-1)[0])


def policy_log_prob(
    params: PolicyParams, states: jax.Array, noise: jax.Array, residual: bool = False
) -> jax.Array:
    """Log-density of the action that `policy_sample` makes of the same noise.

    The tanh's log-derivative is 2 (log 2 - z - softplus(-2 z)), which doesn't overflow.

    Args:
        params: the policy's.
        states: [..., S] normalized.
        noise: [..., A].
        residual: whether the policy has a residual connection; static.

    Returns:
        [...] nats, float32 at least.
    """
    wide = jnp.promote_types(states.dtype, jnp.float32)
    heads = policy_heads(params, states, residual)
    mean, log_std, noise = (x.astype(wide) for x in (*heads, noise))
    z = mean + jnp.exp(log_std) * noise
    gaussian = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2 * jnp.pi)
    return jnp.sum(gaussian - 2.0 * (jnp.log(2.0) - z - jax.nn.softplus(-2.0 * z)), axis=-1)


def init_q(key: jax.Array, n_states: int, n_actions: int, hidden: int = 256) -> QParams:
    """A fresh critic of three layers: orthogonal weights of gain sqrt(2), zero biases.

    Args:
        key: [] typed random key.
        n_states: S.
        n_actions: A; 0 gives a value function.
        hidden: units of the hidden layers.

    Returns:
        (weights [in, out], biases [out]) of every layer, float32.
    """
    return _orthogonal_layers(key, [n_states + n_actions, hidden, hidden, 1])


def q_value(params: QParams, states: jax.Array, actions: jax.Array) -> jax.Array:
    """q(s, a), [...], of normalized states [..., S] and actions [..., A]."""
    return mlp(params, jnp.concatenate([states, actions], axis=-1))[..., 0]


def mlp(layers: Sequence[Layer], inputs: jax.Array, residual: bool = False) -> jax.Array:
    """Linear layers with ReLU between them.

    `residual`: the first layer's output is added to the input of the last.
    """
    hidden = inputs
    first = None
    for weights, biases in layers[:-1]:
        hidden = jax.nn.relu(hidden @ weights + biases)
        first = hidden if first is None else first
    if residual and first is not None:
        hidden = hidden + first
    weights, biases = layers[-1]
    return hidden @ weights + biases


def _orthogonal_layers(key: jax.Array, sizes: Sequence[int]) -> tuple[Layer, ...]:
    draw = orthogonal(2**0.5)
    keys = jax.random.split(key, len(sizes) - 1)
    return tuple(
        (draw(layer_key, shape, jnp.result_type(float)), jnp.zeros(shape[1]))
        for layer_key, shape in zip(keys, pairwise(sizes), strict=True)
    )
