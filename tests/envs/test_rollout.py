"""Vectorized roll-outs, episodes for evaluation and recordings."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jumanji import specs
from jumanji.env import Environment
from jumanji.types import restart, termination, transition

from jaxmethods.envs import (
    Observation,
    PredatorPrey,
    play_episodes,
    record_episode,
    rollout,
    vectorize,
)
from jaxmethods.envs.team.predator_prey.generator import initial_state

ENVIRONMENTS, LENGTH = 20, 15
ENV = PredatorPrey(n_predators=2, dim=2, time_limit=4)


def random_policy(key, observation):
    action = (jax.random.bits(key, observation.action_mask.shape[:2]) % 5).astype(jnp.int32)
    return action, {"mean_action": jnp.mean(action, axis=-1), "twice": 2 * action}


class CountdownState(NamedTuple):
    left: jax.Array
    key: jax.Array


class Countdown(Environment):
    """Two agents share a scalar reward of 1 a step, for as many steps as the key says."""

    num_agents = 2

    def _observe(self, state):
        view = jnp.full((2, 1), state.left)
        return Observation(view, jnp.ones((2, 5), bool), jnp.zeros((), jnp.int32))

    def reset(self, key):
        state = CountdownState(jax.random.randint(key, (), 1, 6), key)
        return state, restart(self._observe(state))

    def step(self, state, action):
        state = state._replace(left=state.left - 1)
        return state, jax.lax.cond(
            state.left == 0,
            lambda: termination(jnp.ones(()), self._observe(state)),
            lambda: transition(jnp.ones(()), self._observe(state)),
        )

    observation_spec = specs.Array((2, 1), jnp.int32)
    action_spec = specs.MultiDiscreteArray(jnp.array([5, 5]))


@pytest.fixture(scope="module")
def rolled():
    """What a roll-out began with, what it ended with, and its trajectory."""
    vector = vectorize(ENV, next_obs_in_extras=True)
    keys = jax.random.split(jax.random.key(0), ENVIRONMENTS)
    state, timestep = jax.jit(vector.reset)(keys)
    run = jax.jit(partial(rollout, vector, random_policy, length=LENGTH))
    after, final, key, trajectory = run(state, timestep, jax.random.key(1))
    return (state, timestep), (after, final, key), trajectory


@pytest.mark.slow
def test_a_trajectory_holds_what_stepping_by_hand_gives(rolled):
    (state, timestep), (after, final, _), trajectory = rolled
    step, reset = jax.jit(jax.vmap(ENV.step)), jax.jit(jax.vmap(ENV.reset))
    for t in range(LENGTH):
        taken = jax.tree.map(lambda leaf, t=t: leaf[t], trajectory)
        chex.assert_trees_all_equal(taken.observation, timestep.observation)
        state, timestep = step(state, taken.action)
        chex.assert_trees_all_equal(
            (taken.reward, taken.discount, taken.last, taken.extras["next_obs"]),
            (timestep.reward, timestep.discount, timestep.last(), timestep.observation),
        )
        fresh, first = reset(jax.vmap(lambda key: jax.random.split(key)[0])(state.key))
        now, begun = (state, timestep.observation), (fresh, first.observation)
        where_ended = partial(jax.vmap(jnp.where), timestep.last())
        state, observation = jax.tree.map(where_ended, begun, now)
        timestep = timestep.replace(observation=observation)
    chex.assert_trees_all_equal(state, after)
    chex.assert_trees_all_equal(timestep.observation, final.observation)


def test_truncation_keeps_discount_one_and_termination_has_zero(rolled):
    trajectory = rolled[2]
    last, success = np.asarray(trajectory.last), np.asarray(trajectory.extras["success"])
    assert success.any(), "the roll-out must contain a success"
    assert (last & ~success).any(), "and a truncated episode"
    np.testing.assert_array_equal(trajectory.discount, 1.0 - np.stack([success] * 2, -1))
    steps = np.asarray(trajectory.observation.step_count)
    np.testing.assert_array_equal(steps[1:] == 0, last[:-1])


def test_policy_outputs_come_back_step_by_step(rolled):
    trajectory = rolled[2]
    np.testing.assert_array_equal(trajectory.policy["twice"], 2 * trajectory.action)
    assert trajectory.policy["mean_action"].shape == (LENGTH, ENVIRONMENTS)


def test_three_short_rollouts_equal_a_long_one(rolled):
    (state, timestep), (after, final, key), trajectory = rolled
    vector = vectorize(ENV, next_obs_in_extras=True)
    half = jax.jit(partial(rollout, vector, random_policy), static_argnames="length")
    *carry, one = half(state, timestep, jax.random.key(1), length=5)
    *carry, two = half(*carry, length=5)
    *carry, three = half(*carry, length=5)
    chex.assert_trees_all_equal(carry, [after, final, key])
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), one, two, three)
    chex.assert_trees_all_equal(joined, trajectory)


def test_a_team_reward_is_repeated_for_every_agent():
    vector = vectorize(Countdown())
    state, timestep = jax.jit(vector.reset)(jax.random.split(jax.random.key(0), 3))
    run = jax.jit(partial(rollout, vector, random_policy, length=8))
    *_, trajectory = run(state, timestep, jax.random.key(0))
    assert trajectory.reward.shape == trajectory.discount.shape == (8, 3, 2)
    np.testing.assert_array_equal(trajectory.reward, 1.0)
    ended = np.asarray(trajectory.last)
    np.testing.assert_array_equal(trajectory.discount, 1.0 - np.stack([ended] * 2, -1))


def test_every_environment_plays_exactly_one_episode_up_to_the_cap_for_every_seed():
    env, seeds = Countdown(), jax.random.split(jax.random.key(4), 3)
    play = partial(play_episodes, env, random_policy, episodes=20, max_steps=4)
    results = jax.jit(jax.vmap(play))(seeds)

    def starts(key):
        return jax.vmap(env.reset)(jax.random.split(jax.random.split(key)[0], 20))[0].left

    left = jax.jit(jax.vmap(starts))(seeds)
    assert left.max() == 5, "some episodes must be cut by the cap"
    np.testing.assert_array_equal(results.length, np.minimum(left, 4))
    np.testing.assert_array_equal(results.returned, np.minimum(left, 4))
    np.testing.assert_array_equal(results.success, left <= 4)


def to_the_right(key, observation):
    del key
    action = jnp.ones(observation.action_mask.shape[:2], jnp.int32)
    return action, observation.step_count


def placed(key):
    """Predators one and two cells to the left of the prey, in the first row of a 3 x 3 grid."""
    return initial_state(jnp.array([[0, 1], [0, 0]]), jnp.array([[0, 2]]), key)


@partial(jax.jit, static_argnames=("env", "max_steps"))
def play_right(env, max_steps):
    return play_episodes(env, to_the_right, jax.random.key(0), 3, max_steps)


def test_an_episode_of_known_length_has_its_return_and_mean_outputs():
    env = PredatorPrey(2, dim=3, generator=placed)
    results = play_right(env, max_steps=9)
    np.testing.assert_array_equal(results.length, [2, 2, 2])
    np.testing.assert_allclose(results.returned, [-0.025] * 3, rtol=1e-6)
    np.testing.assert_array_equal(results.success, [True] * 3)
    np.testing.assert_allclose(results.policy, [0.5] * 3)


def test_success_is_what_the_environment_says_at_the_cap():
    env = PredatorPrey(2, dim=3, mode="cooperative", generator=placed)
    results = play_right(env, max_steps=5)
    np.testing.assert_array_equal(results.length, [5] * 3)
    np.testing.assert_array_equal(results.success, [True] * 3)
    capped = play_right(env, max_steps=1)
    np.testing.assert_array_equal(capped.success, [False] * 3)


def test_a_recording_begins_with_the_first_state_and_repeats_the_last():
    env = PredatorPrey(2, dim=3, generator=placed)
    record = jax.jit(partial(record_episode, env, to_the_right, max_steps=4))
    states, length = record(jax.random.key(0))
    assert length == 2
    np.testing.assert_array_equal(states.step_count, [0, 1, 2, 2, 2])
    np.testing.assert_array_equal(states.predators[:, :, 1].T, [[1, 2, 2, 2, 2], [0, 1, 2, 2, 2]])


@pytest.mark.parametrize("broken", ["output", "action", "reward", "observation"])
def test_a_broken_episode_fails_with_the_longest_length_and_others_are_what_they_were(broken):
    """One of three episodes has a NaN in its second step, which would have been a success."""

    class Breaks(PredatorPrey):
        def step(self, state, action):
            after, timestep = super().step(state, action.astype(jnp.int32))
            bad = (after.step_count == 2) & (after.prey[0, 0] == 1)
            view = timestep.observation.agents_view.astype(jnp.float32)
            if broken == "observation":
                view = jnp.where(bad, jnp.nan, view)
            reward = jnp.where(bad & (broken == "reward"), jnp.inf, timestep.reward)
            return after, timestep.replace(
                reward=reward, observation=timestep.observation._replace(agents_view=view)
            )

        def reset(self, key):
            state, timestep = super().reset(key)
            view = timestep.observation.agents_view.astype(jnp.float32)
            return state, timestep.replace(
                observation=timestep.observation._replace(agents_view=view)
            )

    def some_lower(key):
        """In the row below for about half of all keys."""
        row = jax.random.bernoulli(key).astype(jnp.int32)
        down = jnp.stack([row, jnp.zeros_like(row)])
        return initial_state(jnp.array([[0, 1], [0, 0]]) + down, jnp.array([[0, 2]]) + down, key)

    env = Breaks(2, dim=3, generator=some_lower)

    def policy(key, observation):
        action, _ = to_the_right(key, observation)
        # The center of a predator's window shows its cell: 3 and 4 are in the second row.
        lower = observation.agents_view[:, 0, 4 * 13 + 3 : 4 * 13 + 6].any(-1)
        bad = jnp.where(lower & (observation.step_count == 1), jnp.nan, 0.0)
        action = action + (bad[:, None] if broken == "action" else 0.0)
        return action, bad if broken == "output" else jnp.zeros_like(bad)

    results = jax.jit(partial(play_episodes, env, policy, episodes=16, max_steps=9))(
        jax.random.key(0)
    )
    failed = ~np.asarray(results.success)
    assert 0 < failed.sum() < 16
    np.testing.assert_array_equal(results.length, np.where(failed, 9, 2))
    np.testing.assert_allclose(results.returned, np.where(failed, np.nan, -0.025), rtol=1e-6)


def test_outputs_of_a_policy_may_be_wider_than_float32():
    """With float64 switched on, those of most policies are."""
    env = PredatorPrey(2, dim=3)

    def policy(key, observation):
        return to_the_right(key, observation)[0], jnp.ones(len(observation.step_count))

    with jax.enable_x64(True):
        results = play_episodes(env, policy, jax.random.key(0), episodes=2, max_steps=3)
    assert results.policy.dtype == results.returned.dtype == jnp.float32
    np.testing.assert_array_equal(results.policy, [1.0, 1.0])
