"""What is trained when, on which graph: a training's fixed facts and schedule."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmethods.commformer import graph as graphs
from jaxmethods.commformer import policy
from jaxmethods.commformer.config import GraphConfig, NetworkConfig, PPOConfig
from jaxmethods.envs import TeamEnvironment
from jaxmethods.numerics.precision import whole_part


class CommFormerTraining(NamedTuple):
    """What every piece of the update knows; static."""

    env: TeamEnvironment
    network: policy.Network
    graph: GraphConfig
    ppo: PPOConfig
    updates: int
    """Length of the whole run."""

    @property
    def graph_kind(self) -> str:
        """`graph.kind`, unless the network reads no graph: then who hears whom is its nature."""
        of_model = {"mat": "full", "ippo": "none", "mappo": "none"}
        return of_model.get(self.network.config.model, self.graph.kind)

    @property
    def moves_edges(self) -> bool:
        """Whether edge logits are trained."""
        return self.graph_kind == "learned" and self.graph.levels != "frozen"

    @property
    def edges_per_agent(self) -> int:
        graph = self.graph
        return graphs.edges_per_agent(self.network.n_agents, graph.sparsity, graph.self_edges)


def prepare(
    env: TeamEnvironment,
    network: NetworkConfig,
    graph: GraphConfig,
    ppo: PPOConfig,
    updates: int,
) -> CommFormerTraining:
    """Builds the network for an environment and checks that the graph fits its team.

    Args:
        env: the team's environment.
        network: kind and sizes of the policy.
        graph: how the graph is learned, or which one is fixed.
        ppo: sizes and coefficients of the updates.
        updates: planned number of updates, for annealing and schedules.

    Returns:
        The fixed facts of a training, hashable.

    Raises:
        ValueError: `graph.edges` has another number of agents.
    """
    module = policy.make_network(network, env.num_agents, env.num_actions, env.continuous)
    if graph.edges is not None:
        graphs.given_graph(graph.edges, env.num_agents)
    return CommFormerTraining(env, module, graph, ppo, updates)


def initial_edges(training: CommFormerTraining, key: jax.Array) -> jax.Array:
    """[N, N]: edge logits, or the graph itself where it stays."""
    config, n_agents = training.graph, training.network.n_agents
    if training.graph_kind == "learned":
        return graphs.initial_logits(key, n_agents, config.init_noise)
    if training.graph_kind == "fixed" and config.edges is not None:
        return graphs.given_graph(config.edges, n_agents)
    kind: Any = training.graph_kind
    return graphs.fixed_graph(kind, key, n_agents, training.edges_per_agent, config.self_edges)


def training_graph(
    training: CommFormerTraining, edges: jax.Array, noise: jax.Array, update: jax.Array
) -> jax.Array:
    """The graph of a training forward: raw, sampled or exact (section 3 of the paper).

    Args:
        training: the fixed facts of the training.
        edges: [N, N] edge logits, or the graph itself where it is fixed.
        noise: [N, N] Gumbel noise of the sampled graph.
        update: [] int32, the number of this update.

    Returns:
        [N, N] float32, rows receive.
    """
    if training.graph_kind != "learned":
        return edges
    return graphs.scheduled_graph(
        edges, noise, update, training.updates, training.edges_per_agent, training.graph
    )


def acting_graph(
    training: CommFormerTraining, edges: jax.Array, noise: jax.Array, update: jax.Array
) -> jax.Array:
    """The graph of a roll-out: the update's training graph, or the exact one.

    Args:
        training: the fixed facts of the training.
        edges: [N, N] edge logits, or the graph itself where it is fixed.
        noise: [N, N] Gumbel noise of the sampled graph.
        update: [] int32, the number of this update.

    Returns:
        [N, N] float32, rows receive.
    """
    if training.graph.training_graph == "rollout":
        return training_graph(training, edges, noise, update)
    return hardened_graph(training, edges)


def hardened_graph(training: CommFormerTraining, edges: jax.Array) -> jax.Array:
    """[N, N] 0/1: what is deployed and evaluated, the k largest logits of every row."""
    if training.graph_kind != "learned":
        return edges
    candidates = graphs.selectable(edges, training.graph.self_edges)
    return graphs.exact_graph(candidates, training.edges_per_agent)


def upper_epochs(training: CommFormerTraining) -> jax.Array:
    """[epochs] bool: which epochs the schedule gives to the edge logits."""
    epochs = jnp.arange(1, training.ppo.epochs + 1)
    if not training.moves_edges:
        return jnp.zeros(epochs.shape, bool)
    if training.graph.levels == "joint":
        return jnp.ones(epochs.shape, bool)
    return epochs % training.graph.upper_every == 0


def moves_upper(training: CommFormerTraining, update: jax.Array) -> jax.Array:
    """[epochs] bool: which epochs of an update move the edge logits."""
    pattern = upper_epochs(training)
    if training.graph.post_stable:
        pattern &= update <= stable_from(training)
    return pattern


def stable_from(training: CommFormerTraining) -> int:
    """The update after which the exact graph is trained with frozen logits (`post_stable`)."""
    return whole_part(training.graph.post_ratio, training.updates)


def network_optimizer(training: CommFormerTraining) -> optax.GradientTransformation:
    """Adam with global-norm clipping on the network's parameters alone."""
    ppo = training.ppo
    rate: Any = ppo.learning_rate
    if ppo.anneal:
        rate = optax.linear_schedule(ppo.learning_rate, 0.0, lower_steps(training))
    # One flat vector: a few kernels in place of several for each of some sixty small arrays.
    return optax.flatten(
        optax.chain(
            optax.clip_by_global_norm(ppo.max_grad_norm), optax.adam(rate, eps=ppo.adam_epsilon)
        )
    )


def lower_steps(training: CommFormerTraining) -> int:
    """How often the network's optimizer steps in the whole run."""
    ppo, graph = training.ppo, training.graph
    every_update = training.updates * ppo.epochs
    upper = 0
    if training.moves_edges and graph.levels == "alternating":
        moving = min(training.updates, stable_from(training) + 1)
        updates = moving if graph.post_stable else training.updates
        upper = updates * (ppo.epochs // graph.upper_every)
    return (every_update - upper) * ppo.minibatches
