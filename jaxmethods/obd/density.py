r"""State densities, and the weights of state-density weighted distillation (SDW).

    log r_n = -tau (log p(s_n) - mean log p) / S,    r clipped to its 1 % - 99 % quantiles, mean 1

weighs rare states more: the outer loss multiplies the error at s_n by r_n (see
`OfflineData.density_weights`). The idea is that of "State Diversity Matters in Offline Behavior
Distillation" (arXiv 2512.06692), which has no public code; power and normalization are this
library's. tau = 0 gives ones, that is, the unweighted objective exactly.

The density is a masked autoregressive flow (Papamakarios et al., NeurIPS 2017, arXiv 1705.07057)
of MADE blocks (Germain et al., ICML 2015) with the dimensions reversed between blocks:

    u_i = (x_i - mu_i(x_<i)) exp(-alpha_i(x_<i)),   log p(x) = log N(u; 0, I) - sum alpha

or, cheaper, the distance to the k-th nearest neighbor: log p = -S log d_k + const.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmethods.method import Method, Metrics, Objective, gradient_step
from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.order_statistics import largest
from jaxmethods.obd.config import FlowConfig
from jaxmethods.offline_rl.policies import Layer

ALPHA_BOUNDS = (-5.0, 3.0)
LARGEST_LOG = 60.0
"""The largest logarithm of a weight: float32 holds the sum of e^60 over 10^12 states."""
Density: TypeAlias = Callable[[jax.Array], jax.Array]
"""States [..., S] -> log-density [...], up to a constant that is the same for all states."""


class FlowParams(NamedTuple):
    """The blocks of a flow; leaves have a leading axis of the blocks."""

    layers: tuple[Layer, Layer, Layer]
    """[S, H], [H, H] and [H, 2 S]; the last gives (mu, alpha)."""


class FlowState(NamedTuple):
    """A flow being fitted."""

    key: jax.Array
    params: FlowParams
    optimizer: optax.OptState


def flow_learner(config: FlowConfig) -> Method:
    """Fits a flow to states [L, S] by maximum likelihood; a step is one minibatch."""
    optimizer = optax.adam(config.learning_rate)

    def init(key: jax.Array, states: jax.Array) -> FlowState:
        key, init_key = jax.random.split(key)
        params = init_flow(init_key, states.shape[-1], config.blocks, config.hidden)
        return FlowState(key, params, optimizer.init(params))

    def rows(key: jax.Array, states: jax.Array) -> jax.Array:
        return states[jax.random.randint(key, (config.batch,), 0, len(states))]

    def loss(params: FlowParams, batch: jax.Array) -> jax.Array:
        return -jnp.mean(flow_log_prob(params, batch))

    def step(state: FlowState, states: jax.Array) -> tuple[FlowState, Metrics]:
        key, draw = jax.random.split(state.key)
        batch = rows(draw, states)

        value, gradient = jax.value_and_grad(loss)(state.params, batch)
        params, moments = gradient_step(optimizer, gradient, state.optimizer, state.params)
        return FlowState(key, params, moments), {"negative_log_likelihood": value}

    def objective(state: FlowState, states: jax.Array) -> Objective:
        return Objective(state.params, lambda params, key: loss(params, rows(key, states)))

    return Method(init, step, objective)


def fit_density(key: jax.Array, states: jax.Array, config: FlowConfig) -> Density:
    """The flow fitted to states [L, S] in one compiled program of `config.steps` steps."""
    return partial(flow_log_prob, _fitted(config, key, states))


@compiled("config")
def _fitted(config: FlowConfig, key: jax.Array, states: jax.Array) -> FlowParams:
    method = flow_learner(config)

    def step(state: FlowState, _: None) -> tuple[FlowState, None]:
        return method.step(state, states)[0], None

    return jax.lax.scan(step, method.init(key, states), length=config.steps)[0].params


def init_flow(key: jax.Array, size: int, blocks: int, hidden: int) -> FlowParams:
    """A fresh flow: random hidden layers; last layers near 0, so that it begins as the identity.

    Args:
        key: [] typed random key.
        size: S of the states.
        blocks: how many MADE blocks.
        hidden: units of each hidden layer.

    Returns:
        Leaves [blocks, ...] in float32.
    """

    def block(key: jax.Array) -> tuple[Layer, Layer, Layer]:
        keys = jax.random.split(key, 3)
        scales = (size**-0.5, hidden**-0.5, 1e-2 * hidden**-0.5)
        shapes = ((size, hidden), (hidden, hidden), (hidden, 2 * size))
        first, second, last = (
            (scale * jax.random.normal(k, shape), jnp.zeros(shape[1]))
            for k, scale, shape in zip(keys, scales, shapes, strict=True)
        )
        return first, second, last

    return FlowParams(jax.vmap(block)(jax.random.split(key, blocks)))


def flow_log_prob(params: FlowParams, states: jax.Array) -> jax.Array:
    """log p [...] of states [..., S]."""
    noise, log_det = to_noise(params, states)
    gaussian = -0.5 * jnp.square(noise) - 0.5 * jnp.log(2 * jnp.pi)
    return jnp.sum(gaussian, axis=-1) + log_det


def to_noise(params: FlowParams, states: jax.Array) -> tuple[jax.Array, jax.Array]:
    """u [..., S], standard normal under the flow, and log |det du/dx| [...]."""

    def block(carry: tuple[jax.Array, jax.Array], layers: tuple) -> tuple[tuple, None]:
        values, log_det = carry
        mean, alpha = made(layers, values)
        values = (values - mean) * jnp.exp(-alpha)
        return (values[..., ::-1], log_det - jnp.sum(alpha, axis=-1)), None

    states = states.astype(jnp.result_type(states, *jax.tree.leaves(params)))
    start = (states, jnp.zeros(states.shape[:-1], states.dtype))
    return jax.lax.scan(block, start, params.layers)[0]


def made(layers: tuple[Layer, Layer, Layer], values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """mu and alpha [..., S], where the i-th of each depends on values before the i-th only."""
    size, width = layers[0][0].shape
    outside = np.arange(1, size + 1)
    # Hidden degrees 0 .. S-1 in turn: a unit of degree d sees the first d values.
    inside = np.arange(width) % size
    masks = (
        outside[:, None] <= inside,
        inside[:, None] <= inside,
        np.tile(inside[:, None] < outside, 2),
    )
    hidden = values
    for index, ((weights, biases), mask) in enumerate(zip(layers, masks, strict=True)):
        hidden = hidden @ jnp.where(mask, weights, 0.0) + biases
        hidden = jax.nn.relu(hidden) if index < len(layers) - 1 else hidden
    mean, alpha = jnp.split(hidden, 2, axis=-1)
    return mean, jnp.clip(alpha, *ALPHA_BOUNDS)


def neighbor_density(
    states: jax.Array, neighbors: int = 10, sample: int = 4096, key: jax.Array | None = None
) -> Density:
    """The log-density by the distance d_k to the k-th nearest neighbor, -S log d_k.

    With the whole data as sample (sample >= L) a state of the data is its own first neighbor, which
    counts. Distances are floored at 1e-6, for data with repeated states.

    Args:
        states: [L, S].
        neighbors: k.
        sample: the number of states, drawn once, among which neighbors are looked for.
        key: typed random key of the sample; None: key 0.

    Returns:
        states [..., S] -> log-densities [...], up to a constant.

    Raises:
        ValueError: fewer states than neighbors.
    """
    if sample < len(states):
        rows = jax.random.choice(
            jax.random.key(0) if key is None else key, len(states), (sample,), replace=False
        )
        states = states[rows]
    if not 1 <= neighbors <= len(states):
        raise ValueError(
            f"neighbors: expected 1 to the {len(states)} states there are, got {neighbors}"
        )
    return partial(_neighbor_log_prob, states, neighbors)


def _neighbor_log_prob(anchors: jax.Array, neighbors: int, states: jax.Array) -> jax.Array:
    def one(state: jax.Array) -> jax.Array:
        squared = jnp.sum(jnp.square(anchors - state), axis=-1)
        return -largest(-squared, neighbors)[0][-1]

    flat = states.reshape(-1, states.shape[-1])
    distance = jnp.sqrt(jax.lax.map(one, flat, batch_size=256))
    log_prob = -states.shape[-1] * jnp.log(jnp.maximum(distance, 1e-6))
    return log_prob.reshape(states.shape[:-1])


def state_log_prob(density: Density, states: jax.Array, chunk: int = 8192) -> jax.Array:
    """log p [L] of all states [L, S], `chunk` at a time."""
    return jax.lax.map(density, states, batch_size=chunk)


def sdw_weights(log_p: jax.Array, tau: jax.Array | float, size: int = 1) -> jax.Array:
    """r [L], mean 1, of the data's log-densities [L].

    An infinite log-density counts as the nearest finite one: a state of density 0 weighs as much as
    the rarest of the others.

    Args:
        log_p: up to a constant.
        tau: strength in [0, 1]; 0 gives ones. May be traced.
        size: S, which the log-density is divided by; 1 if it already is per dimension.

    Raises:
        ValueError: no states.
    """
    log_p = jnp.asarray(log_p)
    log_p = log_p.astype(jnp.promote_types(log_p.dtype, jnp.float32))
    if not log_p.size:
        raise ValueError("log_p: expected the log-density of one state at least, got none")
    finite = jnp.isfinite(log_p)
    least = jnp.min(jnp.where(finite, log_p, jnp.inf))
    most = jnp.max(jnp.where(finite, log_p, -jnp.inf))
    near = jnp.clip(log_p, least, most)
    log_p = jnp.where(jnp.any(finite) | jnp.isnan(log_p), near, 0.0)  # all infinite: all alike
    mean = jnp.mean(log_p)
    # Any constant may be taken off; the sum behind the mean overflows where densities do, nearly.
    log_weights = -tau * (log_p - jnp.where(jnp.isinf(mean), most, mean)) / size
    low, high = jnp.quantile(log_weights, jnp.array([0.01, 0.99]))
    log_weights = jnp.clip(log_weights, low, high)
    # Weights are known up to a factor; those that exp or the sum couldn't hold are scaled down.
    weights = jnp.exp(log_weights - jnp.maximum(jnp.max(log_weights) - LARGEST_LOG, 0.0))
    return weights / jnp.mean(weights)
