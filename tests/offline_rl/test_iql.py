"""Implicit Q-learning: its expectiles, its targets, its units, and a world where it must win."""

from __future__ import annotations

import chex
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from scipy.optimize import brentq

from jaxmethods.offline_rl import iql
from jaxmethods.offline_rl.config import IQLConfig
from jaxmethods.offline_rl.critics import bootstrapped, separate, twin_values
from jaxmethods.offline_rl.policies import init_policy, mlp, policy_mode, q_value
from jaxmethods.offline_rl.transitions import Transitions
from jaxmethods.offline_rl.types import Norm
from tests.offline_rl import random_walk

CONFIG = IQLConfig(
    hidden=32,
    n_layers=3,
    batch=128,
    discount=0.9,
    expectile=0.9,
    temperature=20.0,
    learning_rate=3e-3,
    target_rate=0.05,
    scale_rewards=False,
)
STEPS = 600


@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.9])
def test_expectile_regression_of_uniform_numbers_finds_their_expectile(expectile):
    """Of U(0, 1) the tau-expectile m solves tau (1 - m)^2 = (1 - tau) m^2."""
    numbers = jnp.linspace(0.0, 1.0, 2001)
    slope = jax.grad(lambda m: jnp.mean(iql.expectile_loss(numbers - m, expectile)))
    found = brentq(lambda m: float(slope(jnp.float32(m))), 0.0, 1.0, xtol=1e-5)
    ratio = np.sqrt(expectile / (1 - expectile))
    np.testing.assert_allclose(found, ratio / (1 + ratio), atol=1e-3)


def test_expectile_one_half_is_half_the_squared_error():
    errors = jnp.linspace(-3.0, 3.0, 13)
    np.testing.assert_allclose(iql.expectile_loss(errors, 0.5), 0.5 * errors**2)


@given(st.floats(-1e4, 1e4, width=32), st.floats(0.0, 50.0, width=32))
@settings(max_examples=30)
def test_weights_grow_with_the_advantage_and_are_bounded(advantage, temperature):
    weight = float(iql.advantage_weights(jnp.float32(advantage), temperature))
    assert 0.0 <= weight <= 100.0 * (1 + 1e-5)
    assert weight <= float(iql.advantage_weights(jnp.float32(advantage + 1.0), temperature)) + 1e-6


def test_zero_temperature_is_plain_cloning():
    assert np.all(np.asarray(iql.advantage_weights(jnp.array([-5.0, 0.0, 5.0]), 0.0)) == 1.0)


def test_nothing_follows_a_terminal_and_targets_have_no_gradient():
    def total(values):
        return bootstrapped(jnp.ones(2), jnp.array([0.0, 1.0]), values, 0.9).sum()

    values = jnp.array([10.0, 10.0])
    np.testing.assert_allclose(
        bootstrapped(jnp.ones(2), jnp.array([0.0, 1.0]), values, 0.9), [10.0, 1.0]
    )
    assert not np.any(jax.grad(total)(values))


def test_actions_at_the_bounds_have_a_finite_likelihood_that_is_highest_at_the_mode():
    policy = init_policy(jax.random.key(0), 2, 1, hidden=8, n_layers=2)
    states = jnp.ones((1, 2))
    grid = jnp.linspace(-1.0, 1.0, 201)[:, None]
    log_prob = iql.unsquashed_log_prob(policy, jnp.broadcast_to(states, (201, 2)), grid)
    assert np.all(np.isfinite(log_prob))
    best = grid[jnp.argmax(log_prob), 0]
    np.testing.assert_allclose(best, policy_mode(policy, states)[0, 0], atol=0.006)


@pytest.fixture(scope="module")
def learned():
    """The state after STEPS steps on the walker's data, and how often `step` was traced."""
    method = iql.learner(CONFIG, STEPS)
    step = chex.assert_max_traces(method.step, n=1)

    @jax.jit
    def run(key, data):
        state = method.init(key, data)
        return jax.lax.scan(lambda s, _: step(s, data), state, length=STEPS)

    return run(jax.random.key(0), random_walk.transitions())


@pytest.mark.slow
def test_the_best_actions_of_a_known_world_are_found_in_random_data(learned):
    teacher = iql.teacher(learned[0])
    states = jnp.array([-0.9, -0.6, 0.6, 0.9])[:, None]
    actions = policy_mode(teacher.policy, teacher.norm.apply(states))[:, 0]
    assert np.all(np.asarray(actions) * np.array([1, 1, -1, -1]) > 0.5)


@pytest.mark.slow
def test_its_critic_prefers_the_way_to_the_middle(learned):
    teacher = iql.teacher(learned[0])
    states = teacher.norm.apply(jnp.array([[-0.8], [0.8]]))
    toward, away = jnp.array([[1.0], [-1.0]]), jnp.array([[-1.0], [1.0]])
    for critic in (teacher.q1, teacher.q2):
        better = q_value(critic, states, toward) > q_value(critic, states, away)
        assert np.all(np.asarray(better))


@pytest.mark.slow
def test_all_metrics_are_finite_scalars(learned):
    for name, values in learned[1].items():
        assert values.shape == (STEPS,), name
        assert np.all(np.isfinite(values)), name


def test_the_teachers_critics_are_in_the_simulators_units(learned):
    twins = learned[0].networks.critics
    states, actions = jnp.ones((3, 1)), jnp.zeros((3, 1))
    halves = separate(twins, 0.5)
    for half, whole in zip(halves, twin_values(twins, states, actions), strict=True):
        np.testing.assert_allclose(q_value(half, states, actions), 0.5 * whole, rtol=1e-5)


ONE_ROW = Transitions(
    *(jnp.array([row]) for row in ([0.3, -0.2], [0.5], 0.7, [0.1, 0.4], 0.0, 0.0, 0.0)),
    norm=Norm(jnp.zeros(2), jnp.ones(2)),
)
"""Every minibatch of it is the row itself."""


def one_row_state(config):
    method = iql.learner(config, 10)
    state = method.init(jax.random.key(0), ONE_ROW)
    other = method.init(jax.random.key(1), ONE_ROW)
    return method, state._replace(target=other.target, reward_scale=jnp.float32(4.0))


def test_every_loss_is_that_of_the_paper():
    """On one transition: r 0.7, scaled by 4; the target critics are others than the critics."""
    config = CONFIG.model_copy(update={"batch": 3, "temperature": 0.5})
    method, state = one_row_state(config)
    after, metrics = jax.jit(method.step)(state, ONE_ROW)
    networks = state.networks
    target = twin_values(state.target, ONE_ROW.states, ONE_ROW.actions)[:, 0].min()
    value, following = (
        mlp(networks.value, states)[0, 0] for states in (ONE_ROW.states, ONE_ROW.next_states)
    )
    q = twin_values(networks.critics, ONE_ROW.states, ONE_ROW.actions)[:, 0]
    error = target - value
    expected = (config.expectile if error > 0 else 1 - config.expectile) * error**2
    np.testing.assert_allclose(metrics["value_loss"], expected, rtol=1e-4)
    expected = ((4 * 0.7 + config.discount * following - q) ** 2).sum()
    np.testing.assert_allclose(metrics["critic_loss"], expected, rtol=1e-4)
    log_prob = iql.unsquashed_log_prob(networks.policy, ONE_ROW.states, ONE_ROW.actions)[0]
    np.testing.assert_allclose(metrics["policy_loss"], -jnp.exp(0.5 * error) * log_prob, rtol=1e-4)
    np.testing.assert_allclose(metrics["q"], q.mean() / 4, rtol=1e-4)
    lagging = jax.tree.map(
        lambda old, new: 0.95 * old + 0.05 * new, state.target, after.networks.critics
    )
    chex.assert_trees_all_close(after.target, lagging, rtol=1e-5)


def test_how_the_policy_is_weighed_does_not_move_values():
    def after(temperature):
        config = CONFIG.model_copy(update={"batch": 3, "temperature": temperature})
        method, state = one_row_state(config)
        return jax.jit(method.step)(state, ONE_ROW)[0].networks

    one, other = after(0.5), after(1.5)
    chex.assert_trees_all_equal((one.value, one.critics), (other.value, other.critics))


def test_the_likelihood_takes_no_spread_below_exp_of_minus_five():
    policy = init_policy(jax.random.key(0), 2, 1, 4)
    narrow = policy._replace(log_std_mult=jnp.zeros(()), log_std_off=jnp.float32(-15.0))
    least = policy._replace(log_std_mult=jnp.zeros(()), log_std_off=jnp.float32(-5.0))
    states, actions = jnp.ones((1, 2)), jnp.full((1, 1), 0.1)
    one, other = (iql.unsquashed_log_prob(p, states, actions) for p in (narrow, least))
    np.testing.assert_allclose(one, other, rtol=1e-6)
