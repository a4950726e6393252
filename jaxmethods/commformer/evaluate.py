"""Greedy evaluation on the hardened graph, and what the report shows of it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmethods.commformer import gate, policy
from jaxmethods.envs import TeamEnvironment
from jaxmethods.envs.rollout import play_episodes
from jaxmethods.method import Metrics


def greedy_policy(network: policy.Network, parameters: Any, graph: jax.Array) -> Any:
    """A policy of roll-outs: (key, observation) -> (most probable actions, traffic)."""

    def act(key: jax.Array, observation: Any) -> tuple[jax.Array, gate.Traffic]:
        out = policy.act(
            network,
            parameters,
            key,
            observation.agents_view,
            observation.action_mask,
            graph,
            greedy=True,
        )
        return out.action, policy.traffic_of(graph, out)

    return act


def evaluate(
    env: TeamEnvironment,
    network: policy.Network,
    parameters: Any,
    graph: jax.Array,
    key: jax.Array,
    episodes: int,
    max_steps: int,
) -> Metrics:
    """Plays `episodes` fresh episodes, one in each of as many environments.

    Args:
        graph: [N, N] 0/1, rows receive.
        max_steps: an episode that lasts longer is cut and counts as a failure of that length.

    Returns:
        success_rate in [0, 1]; episode_length in steps and episode_return (team mean), means over
        the episodes; edges_used: directed edges between different agents, of N (N - 1);
        messages_per_step: those over which something was heard, a mean over steps and episodes;
        with a gate communication_rate, the share of edges it leaves open (self edges count).
    """
    results = play_episodes(
        env, greedy_policy(network, parameters, graph), key, episodes, max_steps
    )
    between = graph * (1 - jnp.eye(graph.shape[-1]))
    traffic = results.policy
    gated = {} if network.config.gate is None else {"communication_rate": traffic.rate.mean()}
    return {
        "success_rate": results.success.mean(dtype=jnp.float32),
        "episode_length": results.length.mean(dtype=jnp.float32),
        "episode_return": results.returned.mean(),
        "edges_used": jnp.count_nonzero(between),
        "messages_per_step": traffic.messages.mean(),
        **gated,
    }
