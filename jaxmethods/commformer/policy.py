r"""Acting with a CommFormer network, and judging actions that were taken.

    pi(a | o, G) = prod_i pi_i(a_i | o, a_0, ..., a_{i-1}, G)

`act` decodes one agent after the other with cached keys and values; `evaluate_actions` computes
the same log-probabilities in one parallel pass from stored actions (teacher forcing).
Continuous actions are normal around the network's output, each dimension by itself.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.commformer.config import NetworkConfig
from jaxmethods.commformer.gate import Gate, Traffic, traffic
from jaxmethods.commformer.mlp import IndependentActors
from jaxmethods.commformer.network import CommFormer, Encoding

UNAVAILABLE = -1e10
"""Logit of an unavailable action; finite, since 0 * -inf would make the entropy NaN."""

Network = CommFormer | IndependentActors


class ActOutput(NamedTuple):
    """Actions of B teams of N agents."""

    action: jax.Array
    """[B, N] int32, or [B, N, A] float32 if continuous."""
    log_prob: jax.Array
    """[B, N] float32: log pi_i of agent i's action given those of agents before it; [B, N, A] if
    continuous, one for each dimension."""
    value: jax.Array
    """[B, N] float32, in normalized units."""
    gate: Gate | None
    """Who listened; None without a temporal gate."""
    gate_noise: jax.Array | None
    """[B, N] float32: what a sampled gate has to be given to decide the same again."""


class EvaluateOutput(NamedTuple):
    """How the network judges B x N stored actions."""

    log_prob: jax.Array
    """[B, N] float32, or [B, N, A] if continuous."""
    entropy: jax.Array
    """[B, N] float32, of each agent's action given those of agents before it; [B, N, A] if
    continuous."""
    value: jax.Array
    """[B, N] float32, in normalized units."""
    gate: Gate | None
    """Who listened; None without a temporal gate."""


def make_network(
    config: NetworkConfig, n_agents: int, n_actions: int, continuous: bool = False
) -> Network:
    """The module of `config.model` for a team of N agents with A actions (or dimensions).

    Args:
        config: kind and sizes.
        n_agents: N.
        n_actions: A.
        continuous: whether actions are A numbers, not one of A.

    Returns:
        A Flax module; its `init` makes the parameters.
    """
    module = IndependentActors if config.model in ("ippo", "mappo") else CommFormer
    return module(config, n_agents, n_actions, continuous)


def init(network: Network, key: jax.Array, obs: jax.Array) -> Any:
    """Fresh network parameters for observations like `obs` [B, N, D]."""
    n_agents = network.n_agents
    width = network.n_actions if network.continuous else network.n_actions + 1
    shifted = jnp.zeros((1, n_agents, width), jnp.float32)
    everyone = jnp.ones((n_agents, n_agents), jnp.float32)
    return network.init(key, jnp.asarray(obs)[:1], shifted, everyone)


def act(
    network: Network,
    params: Any,
    key: jax.Array,
    obs: jax.Array,
    action_mask: jax.Array,
    graph: jax.Array,
    greedy: bool = False,
) -> ActOutput:
    """Decodes the agents' actions in the order of their index.

    Args:
        network: the module; static.
        params: its parameters.
        key: random key of the sampling; not used when greedy.
        obs: [B, N, D].
        action_mask: [B, N, A] bool or 0/1, true for available actions; not read if continuous.
        graph: [N, N] or [B, N, N], rows receive.
        greedy: take every agent's most probable action (or the mean), and leave a sampled gate
            without noise; static.

    Returns:
        Actions [B, N] int32 (or [B, N, A] float32), their log-probabilities, values, gate and its
        noise.
    """
    batch, n_agents = obs.shape[:2]
    gate_noise = None
    if network.config.gate is not None:
        gate_key, key = jax.random.split(key)
        drawn = network.config.gate.mode == "sampled" and not greedy
        shape = (batch, n_agents)
        draw = jax.random.logistic if drawn else _none
        gate_noise = draw(gate_key, shape, jnp.float32)
    encoding = _encode(network, params, obs, graph, gate_noise=gate_noise)
    shape = (n_agents, batch, network.n_actions)
    draw = jax.random.normal if network.continuous else jax.random.gumbel
    noise = (_none if greedy else draw)(key, shape, jnp.float32)

    def one_agent(
        carry: tuple[jax.Array, Any], agent: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, Any], tuple[jax.Array, jax.Array]]:
        token, cache = carry
        index, rep, available, noise = agent
        out, cache = _run(network, "decode_step", params, token, rep, encoding.graph, cache, index)
        if network.continuous:
            std = action_std(params)
            action = out + std * noise
            return (action, cache), (action, _gaussian_log_prob(out, std, action))
        logits = jnp.where(available, out, UNAVAILABLE)
        action = jnp.argmax(logits + noise, axis=-1).astype(jnp.int32)
        token = _one_hot(action + 1, network.n_actions + 1)
        return (token, cache), (action, _log_prob(jax.nn.log_softmax(logits), action))

    start = jnp.zeros((batch, network.n_actions), jnp.float32)
    if not network.continuous:
        start = _one_hot(jnp.zeros(batch, jnp.int32), network.n_actions + 1)
    cache = _run(network, "init_cache", params, batch)
    by_agent = (
        jnp.arange(n_agents),
        jnp.moveaxis(encoding.rep, 1, 0),  # [N, B, E]
        jnp.moveaxis(action_mask, 1, 0).astype(bool),  # [N, B, A]
        noise,
    )
    _, (action, log_prob) = jax.lax.scan(one_agent, (start, cache), by_agent)
    action, log_prob = jnp.moveaxis(action, 0, 1), jnp.moveaxis(log_prob, 0, 1)  # [B, N, ...]
    return ActOutput(action, log_prob, encoding.value, encoding.gate, gate_noise)


def traffic_of(graph: jax.Array, acted: ActOutput) -> Traffic:
    """What B teams said to each other on a graph [N, N] when they acted."""
    everyone = jnp.ones(acted.value.shape, jnp.float32)
    return traffic(graph, everyone if acted.gate is None else acted.gate.open)


def evaluate_actions(
    network: Network,
    params: Any,
    obs: jax.Array,
    action: jax.Array,
    action_mask: jax.Array,
    graph: jax.Array,
    dropout_key: jax.Array | None = None,
    gate_noise: jax.Array | None = None,
) -> EvaluateOutput:
    """Log-probabilities, entropies and values of stored actions, in one parallel pass.

    Args:
        network: the module; static.
        params: its parameters.
        obs: [B, N, D].
        action: [B, N] integer, or [B, N, A] if continuous.
        action_mask: [B, N, A] bool or 0/1, true for available actions; not read if continuous.
        graph: [N, N] or [B, N, N], rows receive.
        dropout_key: random key of the encoder's dropout; None for none.
        gate_noise: [B, N] that `act` returned; None for none.

    Returns:
        Log-probabilities, entropies and values [B, N] float32 (the first two [B, N, A] if
        continuous), and the gate.
    """
    encoding = _encode(network, params, obs, graph, dropout_key, gate_noise)
    tokens = shift_actions(action, network.n_actions, network.continuous)
    out = _run(network, "decode", params, tokens, encoding.rep, encoding.graph)
    if network.continuous:
        std = action_std(params)
        log_prob = _gaussian_log_prob(out, std, action)
        entropy = jnp.broadcast_to(0.5 * math.log(2 * math.pi * math.e) + jnp.log(std), out.shape)
    else:
        log_probs = jax.nn.log_softmax(jnp.where(action_mask.astype(bool), out, UNAVAILABLE))
        log_prob = _log_prob(log_probs, action)
        entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)
    return EvaluateOutput(log_prob, entropy, encoding.value, encoding.gate)


def decoded(
    network: Network, params: Any, obs: jax.Array, tokens: jax.Array, graph: jax.Array
) -> jax.Array:
    """The decoder's outputs for actions that are given, without dropout and the gate's noise.

    Args:
        network: the module; static.
        params: its parameters.
        obs: [B, N, D].
        tokens: [B, N, A + 1] or [B, N, A], what `shift_actions` makes of actions.
        graph: [N, N] or [B, N, N], rows receive.

    Returns:
        [B, N, A] float32: logits, those of unavailable actions too; means if continuous.
    """
    noise = None if network.config.gate is None else jnp.zeros(obs.shape[:2], jnp.float32)
    encoding = _encode(network, params, obs, graph, gate_noise=noise)
    return _run(network, "decode", params, tokens, encoding.rep, encoding.graph)


def shift_actions(action: jax.Array, n_actions: int, continuous: bool = False) -> jax.Array:
    """The decoder's input: agent i gets the action of agent i-1.

    Args:
        action: [..., N] integer, or [..., N, A] if continuous.
        n_actions: A.
        continuous: pass actions on as they are.

    Returns:
        [..., N, A + 1] float32: row i is the one-hot of 1 + a_{i-1}, row 0 that of 0. If
        continuous [..., N, A]: row i is a_{i-1}, row 0 zeros.
    """
    if continuous:
        return jnp.roll(action, 1, axis=-2).at[..., 0, :].set(0)
    previous = jnp.roll(action, 1, axis=-1) + 1
    previous = previous.at[..., 0].set(0)
    return _one_hot(previous, n_actions + 1)


def action_std(params: Any) -> jax.Array:
    """[A]: the standard deviation of continuous actions, 0.5 sigmoid(log_std)."""
    return 0.5 * jax.nn.sigmoid(params["params"]["log_std"])


def _encode(
    network: Network,
    params: Any,
    obs: jax.Array,
    graph: jax.Array,
    dropout_key: jax.Array | None = None,
    gate_noise: jax.Array | None = None,
) -> Encoding:
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    deterministic = dropout_key is None
    return _run(network, "encode", params, obs, graph, deterministic, gate_noise, rngs=rngs)


def _run(network: Network, method: str, params: Any, *args: Any, **options: Any) -> Any:
    # Flax types the result of `apply` as possibly holding mutated variables; there are none here.
    return network.apply(params, *args, method=method, **options)


def _log_prob(log_probs: jax.Array, action: jax.Array) -> jax.Array:
    # A masked sum: gathers, and even more the scatters of their gradients, are slow on CPU.
    taken = _one_hot(action, log_probs.shape[-1])
    return jnp.sum(log_probs * taken, axis=-1)


def _gaussian_log_prob(mean: jax.Array, std: jax.Array, action: jax.Array) -> jax.Array:
    """[..., A]: of every dimension by itself."""
    scaled = (action - mean) / std
    return -0.5 * jnp.square(scaled) - jnp.log(std) - 0.5 * math.log(2 * math.pi)


def _one_hot(index: jax.Array, size: int) -> jax.Array:
    return jax.nn.one_hot(index, size, dtype=jnp.float32)


def _none(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """The noise of whoever draws none."""
    del key
    return jnp.zeros(shape, dtype)
