"""Vectorized roll-outs of a jumanji environment whose observation is `Observation`.

A policy maps a batch of observations to actions, `policy(key, observation) -> (action, outputs)`,
with observation leaves [R, ...], action [R, N] ([R, N, A] if actions are continuous) and
`outputs` any pytree of [R, ...] arrays (log-probabilities, values, ...). Letters: R environments,
T steps, N agents, A actions, E episodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jumanji.env import Environment
from jumanji.types import TimeStep

from jaxmethods.envs.automatic_reset import AutomaticReset
from jaxmethods.envs.finite import finite
from jaxmethods.envs.team.types import Observation

Policy = Callable[[jax.Array, Observation], tuple[jax.Array, Any]]


class Trajectory(NamedTuple):
    """T steps of R environments."""

    observation: Observation
    """[T, R, ...]: what the policy saw before it acted."""
    action: jax.Array
    """[T, R, N] int32, or [T, R, N, A] float32 if actions are continuous."""
    reward: jax.Array
    """[T, R, N] float32; a team reward is repeated for every agent."""
    discount: jax.Array
    """[T, R, N] float32: 0 where the episode terminated with this step, 1 where it was
    truncated or goes on."""
    last: jax.Array
    """[T, R] bool: the episode ended with this step, by termination or truncation."""
    policy: Any
    """[T, R, ...]: the policy's outputs."""
    extras: dict[str, Any]
    """[T, R, ...]: the environment's extras after the step; with `next_obs_in_extras` they
    hold, as `next_obs`, the observation reached before any reset."""


class EpisodeResults(NamedTuple):
    """Outcome of one episode in each of E environments."""

    length: jax.Array
    """[E] int32: steps taken, `max_steps` if the episode did not end by then or broke."""
    returned: jax.Array
    """[E] float32: sum over the episode of the team's mean reward; NaN if the episode broke."""
    success: jax.Array
    """[E] bool; False if the episode broke."""
    policy: Any
    """[E, ...] float32: the policy's outputs averaged over the steps of the episode."""


class Recording(NamedTuple):
    """One episode, to be drawn."""

    states: Any
    """[max_steps + 1, ...]: states from the first one on; once the episode is over the last
    one is repeated (viewers show it once)."""
    length: jax.Array
    """[] int32: steps taken."""


def vectorize(env: Environment, next_obs_in_extras: bool = False) -> AutomaticReset:
    """Maps `reset` over keys [R] and `step` over states and actions, resetting ended episodes.

    The time step that ends an episode keeps its reward, discount and extras but shows the first
    observation of the next one. `next_obs_in_extras` adds the observation that was reached as
    `extras["next_obs"]`, which bootstrapping from a truncated episode needs. An environment
    whose state holds settings (an arrival rate, say) keeps them through
    `keep_settings(state, previous) -> state`. A new episode begins from a key derived from the one
    in the state of the old one; only those that ended are begun (see `automatic_reset`).

    Args:
        env: a jumanji environment.
        next_obs_in_extras: add the observation that was reached as `extras["next_obs"]`.

    Returns:
        An environment whose states, actions and time steps have a leading axis R.
    """
    return AutomaticReset(env, next_obs_in_extras)


def rollout(
    env: Environment,
    policy: Policy,
    state: Any,
    timestep: TimeStep[Observation],
    key: jax.Array,
    length: int,
) -> tuple[Any, TimeStep[Observation], jax.Array, Trajectory]:
    """Takes `length` steps in R vectorized environments.

    Args:
        env: what `vectorize` returned.
        policy: see the module.
        state: [R, ...] environment states.
        timestep: [R, ...] the time step that came with them.
        key: [] typed random key.
        length: T, static.

    Returns:
        The state, time step and key to go on from, and the trajectory.
    """

    def step(carry, _):
        state, timestep, key = carry
        key, draw = jax.random.split(key)
        observation = timestep.observation
        action, outputs = policy(draw, observation)
        state, timestep = env.step(state, action)
        taken = Trajectory(
            observation=observation,
            action=action,
            reward=_per_agent(timestep.reward, observation),
            discount=_per_agent(timestep.discount, observation),
            last=_ended(timestep),
            policy=outputs,
            extras=timestep.extras,
        )
        return (state, timestep, key), taken

    carry, trajectory = jax.lax.scan(step, (state, timestep, key), length=length)
    return *carry, trajectory


def play_episodes(
    env: Environment, policy: Policy, key: jax.Array, episodes: int, max_steps: int
) -> EpisodeResults:
    """Plays exactly one episode in each of `episodes` environments.

    An environment that is quick doesn't play a second episode, so short episodes weigh no more
    than long ones. An episode is a success if `extras["success"]` says so at its last step;
    for environments that don't report it, if it terminated (discount 0). One that is still
    running after `max_steps` has that length, and is a success only if `extras` says so.

    An episode is broken where something in it isn't finite: an observation, an action, a reward or
    an output of the policy. A policy of discrete actions has to show among its outputs what it
    chose by (a log-probability, say): the largest of numbers that are NaN is an action like any
    other.

    Args:
        env: an environment, not vectorized.
        policy: see the module.
        key: [] typed random key.
        episodes: E, static.
        max_steps: cap on the length.

    Returns:
        Length, return and success of each episode, [E].
    """
    reset_key, key = jax.random.split(key)
    state, timestep = jax.vmap(env.reset)(jax.random.split(reset_key, episodes))
    outputs = jax.eval_shape(policy, key, timestep.observation)[1]
    results = EpisodeResults(
        length=jnp.zeros(episodes, jnp.int32),
        returned=jnp.zeros(episodes, jnp.float32),
        success=jnp.zeros(episodes, bool),
        policy=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), outputs),
    )

    def unfinished(carry):
        running, results = carry[-2:]
        return jnp.any(running) & (jnp.max(results.length) < max_steps)

    def step(carry):
        state, timestep, key, running, results = carry
        key, draw = jax.random.split(key)
        seen = timestep.observation
        action, outputs = policy(draw, seen)
        state, timestep = jax.vmap(env.step)(state, action)
        reward = jnp.mean(_per_agent(timestep.reward, timestep.observation), axis=-1)
        sound = finite((seen, action, outputs, reward, timestep.observation))
        reward = jnp.where(sound, reward, jnp.nan)
        results = EpisodeResults(
            length=results.length + running,
            returned=results.returned + jnp.where(running, reward, 0.0).astype(jnp.float32),
            success=jnp.where(running, _success(timestep) & sound, results.success),
            policy=jax.tree.map(
                lambda total, leaf: (
                    total + jnp.where(_expand(running, leaf), leaf, 0).astype(total.dtype)
                ),
                results.policy,
                outputs,
            ),
        )
        return state, timestep, key, running & sound & ~_ended(timestep), results

    start = (state, timestep, key, jnp.ones(episodes, bool), results)
    results = jax.lax.while_loop(unfinished, step, start)[-1]
    mean = jax.tree.map(lambda total: total / _expand(results.length, total), results.policy)
    length = jnp.where(jnp.isfinite(results.returned), results.length, max_steps)
    return results._replace(length=length, policy=mean)


def record_episode(env: Environment, policy: Policy, key: jax.Array, max_steps: int) -> Recording:
    """Plays one episode of at most `max_steps` and keeps its states.

    `env` is an environment, not vectorized; the policy sees it as a batch of one.

    Args:
        env: an environment, not vectorized.
        policy: see the module; it gets a batch of one.
        key: typed random key [].
        max_steps: cap on the length.

    Returns:
        The states of the episode, with a leading time axis.
    """
    reset_key, key = jax.random.split(key)
    first, timestep = env.reset(reset_key)

    def step(carry, _):
        state, observation, key, running = carry
        key, draw = jax.random.split(key)
        action, _ = policy(draw, jax.tree.map(lambda leaf: leaf[None], observation))
        after, timestep = env.step(state, action[0])
        state = jax.tree.map(lambda new, old: jnp.where(running, new, old), after, state)
        return (state, timestep.observation, key, running & ~_ended(timestep)), (state, running)

    start = (first, timestep.observation, key, jnp.ones((), bool))
    _, (states, ran) = jax.lax.scan(step, start, length=max_steps)
    states = jax.tree.map(lambda one, rest: jnp.concatenate([one[None], rest]), first, states)
    return Recording(states, jnp.sum(ran, dtype=jnp.int32))


def _ended(timestep: Any) -> jax.Array:
    """[R] bool: terminated or truncated."""
    return timestep.last()


def _per_agent(values: Any, observation: Observation) -> jax.Array:
    """Repeats a team scalar [R] for every agent; leaves [R, N] as it is."""
    agents = observation.action_mask.shape[:2]
    return jnp.broadcast_to(values.reshape(values.shape + (1,) * (2 - values.ndim)), agents)


def _expand(values: jax.Array, leaf: jax.Array) -> jax.Array:
    """[E] with as many axes as `leaf` [E, ...]."""
    return values.reshape(values.shape + (1,) * (leaf.ndim - 1))


def _success(timestep: Any) -> jax.Array:
    """[E] bool."""
    if "success" in timestep.extras:
        return timestep.extras["success"]
    terminated = jnp.all(timestep.discount.reshape(len(timestep.discount), -1) == 0, axis=-1)
    return _ended(timestep) & terminated
