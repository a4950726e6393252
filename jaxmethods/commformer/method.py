"""One update of CommFormer: a roll-out on the current graph, then epochs of bi-level PPO.

The network's parameters are the lower level, the edge logits alpha the upper one. Every
`upper_every`-th epoch moves alpha and leaves the network bit-identical, the others the
reverse (first-order alternation, section 3.3 of the paper as its code implements it).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jumanji.types import TimeStep

from jaxmethods.bilevel import Alternating, AlternatingState, alternating
from jaxmethods.commformer import graph as graphs
from jaxmethods.commformer import objectives, policy
from jaxmethods.commformer.config import GraphConfig, NetworkConfig, PPOConfig
from jaxmethods.commformer.network import CommFormer
from jaxmethods.envs import TeamEnvironment
from jaxmethods.envs.rollout import Trajectory, rollout, vectorise
from jaxmethods.method import Batch, Method, Metrics


class EpisodeStatistics(NamedTuple):
    """Running and last completed episode of each of R environments."""

    running_length: jax.Array
    """[R] int32: steps of the episode under way."""
    running_return: jax.Array
    """[R] float32: its team-mean reward so far."""
    length: jax.Array
    """[R] float32: of the last completed episode (0 before the first)."""
    returned: jax.Array
    """[R] float32: team-mean return of the last completed episode."""


class State(NamedTuple):
    """Everything an update needs; a pytree of arrays."""

    key: jax.Array
    levels: AlternatingState
    """lower: network parameters; upper: [N, N] edge logits, or the graph itself if it is fixed."""
    value_norm: objectives.ValueNormState
    environment: Any
    """State of R environments."""
    timestep: TimeStep
    """Their last time steps."""
    episodes: EpisodeStatistics
    update: jax.Array
    """[] int32: updates done."""


class Experience(NamedTuple):
    """One roll-out, time and environments flattened to M = T R samples."""

    observation: jax.Array
    """[M, N, D]"""
    action_mask: jax.Array
    """[M, N, A] bool"""
    action: jax.Array
    """[M, N] int32"""
    targets: objectives.Minibatch
    """What the PPO loss compares with, each [M, N]."""


class CommFormerTraining(NamedTuple):
    """What every piece of the update knows; static."""

    env: TeamEnvironment
    network: CommFormer
    graph: GraphConfig
    ppo: PPOConfig
    updates: int
    """Length of the whole run."""

    @property
    def edges_per_agent(self) -> int:
        return graphs.edges_per_agent(self.network.n_agents, self.graph.sparsity)


def trainer(
    env: TeamEnvironment,
    network: NetworkConfig,
    graph: GraphConfig,
    ppo: PPOConfig,
    updates: int,
) -> Method:
    """Makes CommFormer's training for one environment.

    Args:
        env: a `TeamEnvironment` (a jumanji environment with `num_agents`, `num_actions` and the
            `Observation` of `jaxmethods.envs`), simulated `ppo.environments` times in parallel.
        updates: planned number of `step` calls (for annealing and `post_stable`).

    Returns:
        `init(key, None)` and `step(state, None)`; one step is one update: `ppo.rollout` steps in
        every environment, then `ppo.epochs` epochs on them. Metrics are finite scalars.
    """
    module = CommFormer(network, n_agents=env.num_agents, n_actions=env.num_actions)
    training = CommFormerTraining(env, module, graph, ppo, updates)
    levels = alternating(
        lambda lower, upper, *args: minibatch_loss(training, lower, upper, *args),
        network_optimizer(training),
        optax.adam(graph.learning_rate, eps=1e-8),
    )

    def init(key: jax.Array, batch: Batch) -> State:
        del batch
        return init_state(training, levels, key)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        del batch
        return update(training, levels, state)

    return Method(init, step)


def init_state(training: CommFormerTraining, levels: Alternating, key: jax.Array) -> State:
    """Fresh parameters, edge logits and environments."""
    key, network_key, graph_key, environment_key = jax.random.split(key, 4)
    ppo, n_agents = training.ppo, training.network.n_agents
    keys = jax.random.split(environment_key, ppo.environments)
    environment, timestep = vectorise(training.env).reset(keys)
    if training.graph.kind == "learned":
        edges = graphs.initial_logits(graph_key, n_agents, training.graph.init_noise)
    else:
        edges = graphs.fixed_graph(
            training.graph.kind, graph_key, n_agents, training.edges_per_agent
        )
    parameters = policy.init(training.network, network_key, timestep.observation.agents_view)
    zeros = jnp.zeros(ppo.environments)
    return State(
        key=key,
        levels=levels.init(parameters, edges),
        value_norm=objectives.value_norm_init(),
        environment=environment,
        timestep=timestep,
        episodes=EpisodeStatistics(zeros.astype(jnp.int32), zeros, zeros, zeros),
        update=jnp.int32(0),
    )


def update(
    training: CommFormerTraining, levels: Alternating, state: State
) -> tuple[State, Metrics]:
    """One roll-out and its epochs."""
    key, acting_key, noise_key, epochs_key = jax.random.split(state.key, 4)
    noise = jax.random.gumbel(noise_key, (training.network.n_agents,) * 2)
    state, trajectory, experience = collect(training, state, noise, acting_key)
    levels_state, value_norm, losses = train_epochs(
        training, levels, state, experience, noise, epochs_key
    )
    episodes = follow_episodes(state.episodes, trajectory)
    state = state._replace(
        key=key,
        levels=levels_state,
        value_norm=value_norm,
        episodes=episodes,
        update=state.update + 1,
    )
    steps_per_update = training.ppo.environments * training.ppo.rollout
    metrics = {
        "environment_steps": state.update * steps_per_update,
        "reward": trajectory.reward.mean(),
        "episode_length": episodes.length.mean(),
        "episode_return": episodes.returned.mean(),
        **losses,
        **edge_metrics(training, state.levels.upper),
    }
    return state, metrics


def collect(
    training: CommFormerTraining, state: State, noise: jax.Array, key: jax.Array
) -> tuple[State, Trajectory, Experience]:
    """Acts for T steps in R environments; advantages by GAE on denormalised values (section 7)."""
    ppo, network = training.ppo, training.network
    graph = acting_graph(training, state.levels.upper, noise, state.update)
    parameters = state.levels.lower

    def act(key: jax.Array, observation: Any) -> tuple[jax.Array, tuple]:
        out = policy.act(network, parameters, key, observation.agents_view,
                         observation.action_mask, graph)  # fmt: skip
        return out.action, (out.log_prob, out.value)

    environment, timestep, _, trajectory = rollout(
        vectorise(training.env), act, state.environment, state.timestep, key, ppo.rollout
    )
    log_prob, value = trajectory.policy
    bootstrap, _ = network.apply(
        parameters, timestep.observation.agents_view, graph, method="encode"
    )
    advantages, returns = objectives.gae(
        trajectory.reward,
        objectives.value_norm_denormalize(state.value_norm, value),
        objectives.value_norm_denormalize(state.value_norm, bootstrap),
        jnp.where(trajectory.last[..., None], 0.0, trajectory.discount),
        ppo.discount,
        ppo.gae_lambda,
    )
    targets = objectives.Minibatch(
        old_log_prob=log_prob,
        old_value=value,
        advantage=objectives.normalize_advantages(advantages),
        returns=returns,
        active=None,
    )
    observation = trajectory.observation
    experience = Experience(
        observation.agents_view, observation.action_mask, trajectory.action, targets
    )
    flat = jax.tree.map(_flatten, experience)
    return state._replace(environment=environment, timestep=timestep), trajectory, flat


def train_epochs(
    training: CommFormerTraining,
    levels: Alternating,
    state: State,
    experience: Experience,
    noise: jax.Array,
    key: jax.Array,
) -> tuple[AlternatingState, objectives.ValueNormState, Metrics]:
    """All epochs on one roll-out; metrics are means over the epochs."""
    ppo = training.ppo
    move_upper = moves_upper(training, state.update)

    def one_minibatch(
        carry: tuple[AlternatingState, objectives.ValueNormState],
        inputs: tuple[Experience, jax.Array, jax.Array],
    ) -> tuple[tuple[AlternatingState, objectives.ValueNormState], Metrics]:
        levels_state, value_norm = carry
        minibatch, upper, key = inputs
        levels_state, report = levels.step(
            levels_state, upper, minibatch, value_norm, noise, state.update, key
        )
        value_norm, metrics = report.aux
        metrics = {"loss": report.loss, "gradient_norm": report.gradient_norm, **metrics}
        return (levels_state, value_norm), metrics

    def one_epoch(carry: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, Metrics]:
        upper, key = inputs
        shuffle_key, *keys = jax.random.split(key, ppo.minibatches + 1)
        if ppo.minibatches == 1:  # the mean over everything needs no shuffling
            return one_minibatch(carry, (experience, upper, keys[0]))
        minibatches = shuffled_minibatches(shuffle_key, experience, ppo.minibatches)
        uppers = jnp.full(ppo.minibatches, upper)
        return jax.lax.scan(one_minibatch, carry, (minibatches, uppers, jnp.stack(keys)))

    (levels_state, value_norm), metrics = jax.lax.scan(
        one_epoch, (state.levels, state.value_norm), (move_upper, jax.random.split(key, ppo.epochs))
    )
    return levels_state, value_norm, jax.tree.map(jnp.mean, metrics)


def shuffled_minibatches(key: jax.Array, experience: Experience, count: int) -> Experience:
    """Splits M samples at random into [count, M // count, ...]; a remainder is left out."""
    samples = experience.action.shape[0]
    size = samples // count
    order = jax.random.permutation(key, samples)[: count * size]
    return jax.tree.map(lambda x: x[order].reshape(count, size, *x.shape[1:]), experience)


def minibatch_loss(
    training: CommFormerTraining,
    parameters: Any,
    edges: jax.Array,
    minibatch: Experience,
    value_norm: objectives.ValueNormState,
    noise: jax.Array,
    update: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, tuple[objectives.ValueNormState, Metrics]]:
    """The objective of both levels: the PPO loss of a minibatch on the training graph."""
    noise_key, dropout_key = jax.random.split(key)
    if training.graph.training_graph == "resample":
        noise = jax.random.gumbel(noise_key, noise.shape)
    graph = training_graph(training, edges, noise, update)
    out = policy.evaluate_actions(
        training.network,
        parameters,
        minibatch.observation,
        minibatch.action,
        minibatch.action_mask,
        graph,
        dropout_key,
    )
    return objectives.ppo_loss(
        out.log_prob, out.entropy, out.value, minibatch.targets, value_norm, training.ppo
    )


def training_graph(
    training: CommFormerTraining, edges: jax.Array, noise: jax.Array, update: jax.Array
) -> jax.Array:
    """[N, N]: the graph of a training forward (raw, sampled or exact; section 3 of the paper)."""
    if training.graph.kind != "learned":
        return edges
    return graphs.training_graph(
        edges, noise, update, training.updates, training.edges_per_agent, training.graph
    )


def acting_graph(
    training: CommFormerTraining, edges: jax.Array, noise: jax.Array, update: jax.Array
) -> jax.Array:
    """[N, N]: the graph of a roll-out: the update's training graph, or the exact one."""
    if training.graph.training_graph == "rollout":
        return training_graph(training, edges, noise, update)
    return hardened_graph(training, edges)


def hardened_graph(training: CommFormerTraining, edges: jax.Array) -> jax.Array:
    """[N, N] 0/1: what is deployed and evaluated, the k largest logits of every row."""
    if training.graph.kind != "learned":
        return edges
    return graphs.exact_graph(edges, training.edges_per_agent)


def moves_upper(training: CommFormerTraining, update: jax.Array) -> jax.Array:
    """[epochs] bool: which epochs move the edge logits."""
    epochs = jnp.arange(1, training.ppo.epochs + 1)
    if training.graph.kind != "learned":
        return jnp.zeros(epochs.shape, bool)
    pattern = epochs % training.graph.upper_every == 0
    if training.graph.post_stable:
        pattern &= update <= stable_from(training)
    return pattern


def stable_from(training: CommFormerTraining) -> int:
    """The update after which the exact graph is trained with frozen logits (`post_stable`)."""
    return math.floor(training.graph.post_ratio * training.updates)


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
    if graph.kind == "learned":
        moving = min(training.updates, stable_from(training) + 1)
        updates = moving if graph.post_stable else training.updates
        upper = updates * (ppo.epochs // graph.upper_every)
    return (every_update - upper) * ppo.minibatches


def _flatten(x: jax.Array) -> jax.Array:
    """[T, R, ...] to [R T, ...]; environments first, so that sharding over them survives."""
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])


def follow_episodes(episodes: EpisodeStatistics, trajectory: Trajectory) -> EpisodeStatistics:
    """Carries episode lengths and returns through a roll-out."""

    def one_step(
        now: EpisodeStatistics, inputs: tuple[jax.Array, jax.Array]
    ) -> tuple[EpisodeStatistics, None]:
        reward, last = inputs  # [R], [R]
        length, returned = now.running_length + 1, now.running_return + reward
        return EpisodeStatistics(
            jnp.where(last, 0, length),
            jnp.where(last, 0.0, returned),
            jnp.where(last, length.astype(jnp.float32), now.length),
            jnp.where(last, returned, now.returned),
        ), None

    return jax.lax.scan(one_step, episodes, (trajectory.reward.mean(-1), trajectory.last))[0]


def edge_metrics(training: CommFormerTraining, edges: jax.Array) -> Metrics:
    """How far the logits have moved apart: the mean over rows of their range."""
    if training.graph.kind != "learned":
        return {}
    return {"edge_logit_range": jnp.mean(edges.max(-1) - edges.min(-1))}
