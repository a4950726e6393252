"""What an update of CommFormer learns from: T steps of R environments on the current graph.

Advantages are those of GAE on denormalized values (section 7). With `split` the last environments
are for the upper level alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jumanji.types import TimeStep

from jaxmethods.bilevel import AlternatingState
from jaxmethods.commformer import gate, objectives, policy
from jaxmethods.commformer.schedule import CommFormerTraining, acting_graph
from jaxmethods.envs.episode_statistics import EpisodeStatistics
from jaxmethods.envs.rollout import Trajectory, rollout, vectorize


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
    active: jax.Array | None
    """[R, N] bool: agents that take part in the next step; None where all always do."""
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
    """[M, N] int32, or [M, N, A] float32 if continuous"""
    targets: objectives.PPOTargets
    """What the PPO loss compares with, each [M, N]."""
    gate_noise: jax.Array | None = None
    """[M, N]: what the gate was given; None without a gate."""
    held_out: jax.Array | None = None
    """[M] bool: for the upper level alone; None where both levels share all samples."""


class Acted(NamedTuple):
    """What acting leaves behind for training, of R teams."""

    log_prob: jax.Array
    value: jax.Array
    gate_noise: jax.Array | None
    traffic: gate.Traffic


def collect(
    training: CommFormerTraining, state: State, noise: jax.Array, key: jax.Array
) -> tuple[State, Trajectory, Experience]:
    """Acts for T steps in R environments; advantages by GAE on denormalized values (section 7).

    Args:
        training: the fixed facts of the training.
        state: with the environments, where they stand.
        noise: [N, N] Gumbel noise of the update's sampled graph.
        key: [] typed random key of acting.

    Returns:
        The state with environments T steps later; the trajectory, leaves [T, R, ...]; and the
        samples to learn from, leaves [T R, ...].
    """
    ppo, network = training.ppo, training.network
    graph = acting_graph(training, state.levels.upper, noise, state.update)
    parameters = state.levels.lower

    def act(key: jax.Array, observation: Any) -> tuple[jax.Array, Acted]:
        view, mask = observation.agents_view, observation.action_mask
        out = policy.act(network, parameters, key, view, mask, graph)
        acted = Acted(out.log_prob, out.value, out.gate_noise, policy.traffic_of(graph, out))
        return out.action, acted

    environment, timestep, _, trajectory = rollout(
        vectorize(training.env, next_obs_in_extras=ppo.bootstrap_truncated),
        act,
        state.environment,
        _with_next_obs(state.timestep) if ppo.bootstrap_truncated else state.timestep,
        key,
        ppo.rollout,
    )
    acted, observation = trajectory.policy, trajectory.observation

    def value_of(view: jax.Array) -> jax.Array:
        encoding: Any = network.apply(parameters, view, graph, method="encode")
        return objectives.value_norm_denormalize(state.value_norm, encoding.value)

    reward = own_rewards(trajectory)
    if ppo.bootstrap_truncated:
        reached = value_of(_flatten(trajectory.extras["next_obs"].agents_view))
        # [R T, N] -> [T, R, N]
        reached = jnp.swapaxes(reached.reshape(ppo.environments, ppo.rollout, -1), 0, 1)
        cut = trajectory.last[..., None] & (trajectory.discount > 0)
        reward = reward + ppo.discount * jnp.where(cut, reached, 0.0)
        timestep = _without_next_obs(timestep)
    advantages, returns = objectives.gae(
        reward,
        objectives.value_norm_denormalize(state.value_norm, acted.value),
        value_of(timestep.observation.agents_view),
        jnp.where(trajectory.last[..., None], 0.0, trajectory.discount),
        ppo.discount,
        ppo.gae_lambda,
    )
    active, next_active = active_agents(training, state.active, trajectory)
    experience = Experience(
        observation.agents_view,
        observation.action_mask,
        trajectory.action,
        objectives.PPOTargets(
            old_log_prob=acted.log_prob,
            old_value=acted.value,
            advantage=objectives.normalize_advantages(advantages, active),
            returns=returns,
            active=active,
        ),
        acted.gate_noise,
        held_out_samples(training),
    )
    state = state._replace(environment=environment, timestep=timestep, active=next_active)
    return state, trajectory, jax.tree.map(_flatten, experience)


def own_rewards(trajectory: Trajectory) -> jax.Array:
    """[T, R, N] float32: rewards, without those of agents that were not there to act.

    Where an agent's return ends and its slot is alive all the same, the episode going on, the
    next one has taken the slot in that very step, and what the step pays is paid to that one.
    """
    alive = trajectory.extras.get("alive")
    if alive is None:
        return trajectory.reward
    cut = trajectory.discount == 0
    terminated = trajectory.last & jnp.all(cut, axis=-1)
    return jnp.where(cut & alive & ~terminated[..., None], 0.0, trajectory.reward)


def active_agents(
    training: CommFormerTraining, active: jax.Array | None, trajectory: Trajectory
) -> tuple[jax.Array | None, jax.Array | None]:
    """Who took part in each step [T, R, N] float32, and who does in the next one [R, N] bool.

    An environment says who is alive after a step; after the last step of an episode those count
    who are alive when a new one begins.
    """
    if active is None:
        return None, None
    alive = trajectory.extras["alive"]
    fresh = training.env.reset(jax.random.key(0))[1].extras["alive"]
    after = jnp.where(trajectory.last[..., None], fresh, alive)
    before = jnp.concatenate([active[None], after[:-1]])
    return before.astype(jnp.float32), after[-1]


def held_out_samples(training: CommFormerTraining) -> jax.Array | None:
    """[T, R] bool: the last environments, whose samples the network is not trained on.

    One at least, and one at least is left to the network; none where there is no graph to train
    on them.
    """
    if training.graph.upper_data == "same" or not training.moves_edges:
        return None
    environments = training.ppo.environments
    if environments < 2:
        raise ValueError(f"graph.upper_data: split needs two environments, got {environments}")
    held_out = max(round(environments * training.graph.upper_fraction), 1)
    held_out = min(held_out, environments - 1)
    of_environment = jnp.arange(environments) >= environments - held_out
    return jnp.broadcast_to(of_environment, (training.ppo.rollout, environments))


def of_level(minibatch: Experience, upper: jax.Array | bool) -> Experience:
    """The samples that a level is trained on, by marking the others as not active."""
    if minibatch.held_out is None:
        return minibatch
    chosen = (minibatch.held_out == upper).astype(jnp.float32)[:, None]
    active, targets = minibatch.targets.active, minibatch.targets
    active = jnp.broadcast_to(chosen, targets.returns.shape) if active is None else active * chosen
    return minibatch._replace(targets=targets._replace(active=active))


def _flatten(x: jax.Array) -> jax.Array:
    """[T, R, ...] to [R T, ...]; environments first, so that sharding over them survives."""
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])


def _with_next_obs(timestep: Any) -> TimeStep:
    """Gives a time step the entry that the roll-out's own have."""
    return timestep.replace(extras={**timestep.extras, "next_obs": timestep.observation})


def _without_next_obs(timestep: Any) -> TimeStep:
    kept = {name: value for name, value in timestep.extras.items() if name != "next_obs"}
    return timestep.replace(extras=kept)
