"""Greedy evaluation on the hardened graph, and what the report shows of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.commformer import gate, policy
from jaxmethods.envs import TeamEnvironment
from jaxmethods.envs.finite import finite
from jaxmethods.envs.rollout import play_episodes
from jaxmethods.method import Metrics


class Played(NamedTuple):
    """What a greedy policy shows of its decisions for R teams."""

    traffic: gate.Traffic
    log_prob: jax.Array
    """[R, N], or [R, N, A] if continuous: of the actions; NaN where the network's outputs are."""


def greedy_policy(network: policy.Network, parameters: Any, graph: jax.Array) -> Any:
    """A policy of roll-outs: (key, observation) -> (most probable actions, `Played`)."""

    def act(key: jax.Array, observation: Any) -> tuple[jax.Array, Played]:
        out = policy.act(
            network,
            parameters,
            key,
            observation.agents_view,
            observation.action_mask,
            graph,
            greedy=True,
        )
        return out.action, Played(policy.traffic_of(graph, out), out.log_prob)

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
        env: a `TeamEnvironment`.
        network: the module of the policy.
        parameters: its parameters.
        graph: [N, N] 0/1, rows receive.
        key: typed random key [].
        episodes: number of episodes, static.
        max_steps: an episode that lasts longer is cut and counts as a failure of that length.

    Returns:
        success_rate in [0, 1]; episode_length in steps and episode_return (team mean), means over
        the episodes; edges_used: directed edges between different agents, of N (N - 1);
        messages_per_step: those over which something was heard, a mean over steps and episodes;
        with a gate communication_rate, the share of edges it leaves open (self edges count).
        Where a parameter, the graph or the network's outputs aren't finite there is no success, and
        the return is NaN.
    """
    results = play_episodes(
        env, greedy_policy(network, parameters, graph), key, episodes, max_steps
    )
    sound = finite((parameters, graph), batch_axes=0)
    results = results._replace(
        length=jnp.where(sound, results.length, max_steps),
        returned=jnp.where(sound, results.returned, jnp.nan),
        success=results.success & sound,
    )
    between = graph * (1 - jnp.eye(graph.shape[-1]))
    traffic = results.policy.traffic
    gated = {} if network.config.gate is None else {"communication_rate": traffic.rate.mean()}
    return {
        "success_rate": results.success.mean(dtype=jnp.float32),
        "episode_length": results.length.mean(dtype=jnp.float32),
        "episode_return": results.returned.mean(),
        "edges_used": jnp.count_nonzero(between),
        "messages_per_step": traffic.messages.mean(),
        **gated,
    }
