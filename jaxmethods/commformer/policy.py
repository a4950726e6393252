r"""Acting with a CommFormer network, and judging actions that were taken.

    pi(a | o, G) = prod_i pi_i(a_i | o, a_0, ..., a_{i-1}, G)

`act` decodes one agent after the other with cached keys and values; `evaluate_actions` computes
the same log-probabilities in one parallel pass from stored actions (teacher forcing).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.commformer.network import CommFormer, DecoderCache

UNAVAILABLE = -1e10
"""Logit of an unavailable action; finite, since 0 * -inf would make the entropy NaN."""


class ActOutput(NamedTuple):
    """Actions of B teams of N agents."""

    action: jax.Array
    """[B, N] int32"""
    log_prob: jax.Array
    """[B, N] float32: log pi_i of agent i's action given those of agents before it."""
    value: jax.Array
    """[B, N] float32, in normalised units."""


class EvaluateOutput(NamedTuple):
    """How the network judges B x N stored actions."""

    log_prob: jax.Array
    """[B, N] float32"""
    entropy: jax.Array
    """[B, N] float32, of each agent's action given those of agents before it."""
    value: jax.Array
    """[B, N] float32, in normalised units."""


def init(network: CommFormer, key: jax.Array, obs: jax.Array) -> Any:
    """Fresh network parameters for observations like `obs` [B, N, D]."""
    n_agents = network.n_agents
    shifted = jnp.zeros((1, n_agents, network.n_actions + 1))
    return network.init(key, jnp.asarray(obs)[:1], shifted, jnp.ones((n_agents, n_agents)))


def act(
    network: CommFormer,
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
        action_mask: [B, N, A] bool or 0/1, true for available actions.
        graph: [N, N] or [B, N, N], rows receive.
        greedy: take the most probable action of every agent instead of sampling; static.
    """
    batch, n_agents, n_actions = action_mask.shape
    value, rep = _run(network, "encode", params, obs, graph)
    shape = (n_agents, batch, n_actions)
    noise = jnp.zeros(shape) if greedy else jax.random.gumbel(key, shape)

    def one_agent(
        carry: tuple[jax.Array, DecoderCache], agent: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, DecoderCache], tuple[jax.Array, jax.Array]]:
        shifted, cache = carry
        index, rep, available, noise = agent
        logits, cache = _run(network, "decode_step", params, shifted, rep, graph, cache, index)
        logits = jnp.where(available, logits, UNAVAILABLE)
        action = jnp.argmax(logits + noise, axis=-1)
        shifted = jax.nn.one_hot(action + 1, n_actions + 1)
        return (shifted, cache), (action, _log_prob(jax.nn.log_softmax(logits), action))

    start = jax.nn.one_hot(jnp.zeros(batch, jnp.int32), n_actions + 1)
    cache = _run(network, "init_cache", params, batch)
    by_agent = (
        jnp.arange(n_agents),
        jnp.moveaxis(rep, 1, 0),
        jnp.moveaxis(action_mask, 1, 0).astype(bool),
        noise,
    )
    _, (action, log_prob) = jax.lax.scan(one_agent, (start, cache), by_agent)
    return ActOutput(action.T, log_prob.T, value)


def evaluate_actions(
    network: CommFormer,
    params: Any,
    obs: jax.Array,
    action: jax.Array,
    action_mask: jax.Array,
    graph: jax.Array,
    dropout_key: jax.Array | None = None,
) -> EvaluateOutput:
    """Log-probabilities, entropies and values of stored actions, in one parallel pass.

    Args:
        network: the module; static.
        params: its parameters.
        obs: [B, N, D].
        action: [B, N] integer.
        action_mask: [B, N, A] bool or 0/1, true for available actions.
        graph: [N, N] or [B, N, N], rows receive.
        dropout_key: random key of the encoder's dropout; None for none.
    """
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    value, rep = _run(
        network, "encode", params, obs, graph, deterministic=dropout_key is None, rngs=rngs
    )
    shifted = shift_actions(action, network.n_actions)
    logits = _run(network, "decode", params, shifted, rep, graph)
    log_probs = jax.nn.log_softmax(jnp.where(action_mask.astype(bool), logits, UNAVAILABLE))
    entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)
    return EvaluateOutput(_log_prob(log_probs, action), entropy, value)


def shift_actions(action: jax.Array, n_actions: int) -> jax.Array:
    """The decoder's input: what agent i is told of agent i-1's action.

    Args:
        action: [..., N] integer.
        n_actions: A.

    Returns:
        [..., N, A + 1] float32: row i is the one-hot of 1 + a_{i-1}, row 0 that of 0.
    """
    previous = jnp.roll(action, 1, axis=-1) + 1
    previous = previous.at[..., 0].set(0)
    return jax.nn.one_hot(previous, n_actions + 1)


def _run(network: CommFormer, method: str, params: Any, *args: Any, **options: Any) -> Any:
    # Flax types the result of `apply` as possibly holding mutated variables; there are none here.
    return network.apply(params, *args, method=method, **options)


def _log_prob(log_probs: jax.Array, action: jax.Array) -> jax.Array:
    # A masked sum: gathers, and even more the scatters of their gradients, are slow on CPU.
    taken = jax.nn.one_hot(action, log_probs.shape[-1])
    return jnp.sum(log_probs * taken, axis=-1)
