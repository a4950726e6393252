"""One update of CommFormer: a roll-out on the current graph, then epochs of bi-level PPO.

The network's parameters are the lower level, the edge logits alpha the upper one. Every
`upper_every`-th epoch moves alpha and leaves the network bit-identical, the others the
reverse (first-order alternation, section 3.3 of the paper as its code implements it). With
`unroll` alpha's gradient looks through one step of the network, with `split` it comes from
environments that the network is not trained on.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmethods.bilevel import Alternating, AlternatingState, alternating, one_step_gradient
from jaxmethods.commformer import gate, objectives, policy
from jaxmethods.commformer.config import GraphConfig, NetworkConfig, PPOConfig
from jaxmethods.commformer.experience import Experience, State, collect, of_level
from jaxmethods.commformer.schedule import (
    CommFormerTraining,
    initial_edges,
    moves_upper,
    network_optimizer,
    prepare,
    training_graph,
    upper_epochs,
)
from jaxmethods.envs import TeamEnvironment
from jaxmethods.envs.episode_statistics import EpisodeStatistics, follow_episodes
from jaxmethods.envs.rollout import vectorize
from jaxmethods.method import Batch, Method, Metrics, Objective
from jaxmethods.numerics.minibatches import shuffled_minibatches
from jaxmethods.numerics.precision import whole_part


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
        network: sizes and kind of the policy.
        graph: how the communication graph is learned, or which one is fixed.
        ppo: sizes and coefficients of the updates.
        updates: planned number of `step` calls (for annealing and `post_stable`).

    Returns:
        `init(key, None)` and `step(state, None)`; one step is one update: `ppo.rollout` steps in
        every environment, then `ppo.epochs` epochs on them. Metrics are finite scalars.

    Raises:
        ValueError: `graph.edges` has another number of agents.
    """
    return make_method(prepare(env, network, graph, ppo, updates))


def make_method(training: CommFormerTraining) -> Method:
    """The method of a prepared training; see `trainer`."""
    levels = both_levels(training)

    def init(key: jax.Array, batch: Batch) -> State:
        del batch
        return init_state(training, levels, key)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        del batch
        return update(training, levels, state)

    def objective(state: State, batch: Batch) -> Objective:
        """The network's loss on a roll-out of its own, before the first epoch."""
        del batch

        def loss(params: Any, key: jax.Array) -> jax.Array:
            acting_key, noise_key, own_key = jax.random.split(key, 3)
            noise = jax.random.gumbel(noise_key, (training.network.n_agents,) * 2, jnp.float32)
            before, _, samples = collect(training, state, noise, acting_key)
            edges, rest = state.levels.upper, (before.value_norm, noise, state.update, own_key)
            return minibatch_loss(training, params, edges, of_level(samples, False), *rest)[0]

        return Objective(state.levels.lower, loss)

    return Method(init, step, objective)


def both_levels(training: CommFormerTraining) -> Alternating:
    """The network below, edge logits above, one loss."""
    return alternating(
        lambda lower, upper, *args: minibatch_loss(training, lower, upper, *args),
        network_optimizer(training),
        optax.adam(training.graph.learning_rate, eps=1e-8),
        joint=training.graph.levels == "joint",
    )


def init_state(training: CommFormerTraining, levels: Alternating, key: jax.Array) -> State:
    """Fresh parameters, edge logits and environments."""
    key, network_key, graph_key, environment_key = jax.random.split(key, 4)
    ppo, _n_agents = training.ppo, training.network.n_agents
    keys = jax.random.split(environment_key, ppo.environments)
    environment, timestep = vectorize(training.env).reset(keys)
    edges = initial_edges(training, graph_key)
    parameters = policy.init(training.network, network_key, timestep.observation.agents_view)
    zeros = jnp.zeros(ppo.environments, jnp.float32)
    return State(
        key=key,
        levels=levels.init(parameters, edges),
        value_norm=objectives.value_norm_init(),
        environment=environment,
        timestep=timestep,
        active=timestep.extras.get("alive"),
        episodes=EpisodeStatistics(zeros.astype(jnp.int32), zeros, zeros, zeros),
        update=jnp.int32(0),
    )


def update(
    training: CommFormerTraining, levels: Alternating, state: State
) -> tuple[State, Metrics]:
    """One roll-out and its epochs."""
    key, acting_key, noise_key, epochs_key = jax.random.split(state.key, 4)
    noise = jax.random.gumbel(noise_key, (training.network.n_agents,) * 2, jnp.float32)
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
        # A float: int32 would turn negative after 2^31 steps; made anew, so it is never stuck.
        "environment_steps": state.update.astype(float) * steps_per_update,
        "reward": trajectory.reward.mean(),
        "episode_length": episodes.length.mean(),
        "episode_return": episodes.returned.mean(),
        **losses,
        **edge_metrics(training, state.levels.upper),
        **traffic_metrics(training, trajectory.policy.traffic),
    }
    return state, metrics


def train_epochs(
    training: CommFormerTraining,
    levels: Alternating,
    state: State,
    experience: Experience,
    noise: jax.Array,
    key: jax.Array,
) -> tuple[AlternatingState, objectives.ValueNormState, Metrics]:
    """All epochs on one roll-out, lower and upper level in the order of the schedule.

    Args:
        training: the fixed facts of the training.
        levels: the two levels' loss and optimizers.
        state: as `collect` leaves it.
        experience: M samples.
        noise: [N, N] Gumbel noise of the update's sampled graph.
        key: [] typed random key of shuffling and dropout.

    Returns:
        Both levels' parameters and optimizer states, the statistics of the value's normalization,
        and metrics [], means over the epochs.
    """
    ppo = training.ppo
    scheduled, move_upper = upper_epochs(training), moves_upper(training, state.update)

    def one_minibatch(
        carry: tuple[AlternatingState, objectives.ValueNormState],
        inputs: tuple[Experience, tuple[jax.Array, jax.Array], jax.Array],
    ) -> tuple[tuple[AlternatingState, objectives.ValueNormState], Metrics]:
        levels_state, value_norm = carry
        minibatch, (scheduled, upper), key = inputs
        rest = (value_norm, noise, state.update, key)
        gradient = None
        if training.moves_edges and training.graph.unroll:
            # The schedule is the same for all seeds: a real branch, even where seeds are mapped.
            gradient = jax.lax.cond(
                scheduled,
                lambda: unrolled_edge_gradient(training, levels_state, minibatch, rest),
                lambda: jnp.zeros_like(levels_state.upper),
            )
        levels_state, report = levels.step(
            levels_state, upper, of_level(minibatch, upper), *rest, upper_gradient=gradient
        )
        value_norm, metrics = report.aux
        metrics = {"loss": report.loss, "gradient_norm": report.gradient_norm, **metrics}
        return (levels_state, value_norm), metrics

    def one_epoch(carry: Any, inputs: tuple[Any, jax.Array]) -> tuple[Any, Metrics]:
        upper, key = inputs
        shuffle_key, *keys = jax.random.split(key, ppo.minibatches + 1)
        if ppo.minibatches == 1:  # the mean over everything needs no shuffling
            return one_minibatch(carry, (experience, upper, keys[0]))
        minibatches = shuffled_minibatches(
            shuffle_key, experience, ppo.minibatches, ppo.shuffle_shares
        )
        uppers = jax.tree.map(lambda flag: jnp.full(ppo.minibatches, flag), upper)
        return jax.lax.scan(one_minibatch, carry, (minibatches, uppers, jnp.stack(keys)))

    (levels_state, value_norm), metrics = jax.lax.scan(
        one_epoch,
        (state.levels, state.value_norm),
        ((scheduled, move_upper), jax.random.split(key, ppo.epochs)),
    )
    return levels_state, value_norm, jax.tree.map(jnp.mean, metrics)


def unrolled_edge_gradient(
    training: CommFormerTraining, levels: AlternatingState, minibatch: Experience, rest: tuple
) -> jax.Array:
    """The gradient of the edge logits through one gradient step of the network.

    Args:
        training: the fixed facts of the training.
        levels: parameters of both levels.
        minibatch: samples; each level takes those that are its own.
        rest: what `minibatch_loss` takes behind the minibatch.

    Returns:
        [N, N] float32.
    """
    rate = training.graph.unroll_rate
    _, gradient = one_step_gradient(
        lambda lower, upper, *args: minibatch_loss(training, lower, upper, *args),
        levels.lower,
        levels.upper,
        training.ppo.learning_rate if rate is None else rate,
        lower_args=(of_level(minibatch, False), *rest),
        upper_args=(of_level(minibatch, True), *rest),
    )
    return gradient


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
    """The objective of both levels: the PPO loss of a minibatch on the training graph.

    Args:
        training: the fixed facts of the training.
        parameters: the network's: the lower level.
        edges: [N, N] edge logits, or the graph itself where it is fixed: the upper level.
        minibatch: samples.
        value_norm: running statistics of the returns.
        noise: [N, N] Gumbel noise of the update's sampled graph.
        update: [] int32, the number of this update.
        key: [] typed random key of dropout, and of noise that is drawn anew.

    Returns:
        The loss [] float32, and (statistics of the returns with this minibatch in them, metrics
        []).
    """
    noise_key, dropout_key = jax.random.split(key)
    if training.graph.training_graph == "resample":
        noise = jax.random.gumbel(noise_key, noise.shape, noise.dtype)
    graph = training_graph(training, edges, noise, update)
    out = policy.evaluate_actions(
        training.network,
        parameters,
        minibatch.observation,
        minibatch.action,
        minibatch.action_mask,
        graph,
        dropout_key,
        minibatch.gate_noise,
    )
    loss, aux = objectives.ppo_loss(
        out.log_prob, out.entropy, out.value, minibatch.targets, value_norm, training.ppo
    )
    if out.gate is not None and training.network.config.gate is not None:
        config = training.network.config.gate
        begun = update >= whole_part(config.penalty_from, training.updates)
        loss += begun * gate.penalty(out.gate, config)
    return loss, aux


def edge_metrics(training: CommFormerTraining, edges: jax.Array) -> Metrics:
    """How far the logits have moved apart: the mean over rows of their range."""
    if training.graph_kind != "learned":
        return {}
    return {"edge_logit_range": jnp.mean(edges.max(-1) - edges.min(-1))}


def traffic_metrics(training: CommFormerTraining, traffic: gate.Traffic) -> Metrics:
    """Messages of a team in a step; with a gate, the share of possible ones it lets through."""
    metrics = {"messages_per_step": traffic.messages.mean()}
    if training.network.config.gate is not None:
        metrics["communication_rate"] = traffic.rate.mean()
    return metrics
