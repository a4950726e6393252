"""Cal-QL's losses against their definitions, and its learning on a known world."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.offline_rl import calql, iql
from jaxmethods.offline_rl.config import CalQLConfig
from jaxmethods.offline_rl.critics import init_twins, twin_values
from jaxmethods.offline_rl.policies import init_policy, policy_log_prob, policy_mode, policy_sample
from jaxmethods.offline_rl.transitions import minibatch
from tests.offline_rl import random_walk

CONFIG = CalQLConfig(
    hidden=16,
    n_layers=3,
    batch=64,
    discount=0.9,
    policy_rate=3e-3,
    critic_rate=3e-3,
    target_rate=0.05,
    alpha=0.5,
    n_actions=4,
)


@pytest.fixture(scope="module")
def start():
    """A fresh state and a minibatch."""
    data = random_walk.transitions()
    method = calql.learner(CONFIG)
    return method.init(jax.random.key(0), data), minibatch(jax.random.key(1), data, 32)


LOSS = jax.jit(calql.critic_loss, static_argnums=0)


def gap_of(config, start, batch=None):
    state, drawn = start
    batch = drawn if batch is None else batch
    networks = state.networks
    loss = LOSS(config, jax.random.key(2), networks.critics, state.target, networks, batch)
    return loss[0], loss[1]


def changed(**fields):
    return CONFIG.model_copy(update=fields)


def test_the_soft_maximum_over_one_action_is_its_value():
    values = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    np.testing.assert_allclose(calql.conservative_gap(values[:, None], values), 0.0, atol=1e-6)


def test_the_soft_maximum_of_equal_values_adds_the_log_of_their_number():
    values = jnp.ones((2, 5))
    at_actions = jnp.ones((2, 8, 5))
    gap = calql.conservative_gap(at_actions, values, temperature=2.0)
    np.testing.assert_allclose(gap, 2.0 * np.log(8.0), rtol=1e-5)


def test_a_small_temperature_takes_the_maximum():
    at_actions = jnp.array([[[0.0], [3.0], [1.0]]] * 2)
    gap = calql.conservative_gap(at_actions, jnp.ones((2, 1)), temperature=1e-3)
    np.testing.assert_allclose(gap, 2.0, rtol=1e-4)


def test_without_weight_only_the_bellman_error_is_left(start):
    loss, metrics = gap_of(changed(alpha=0.0), start)
    np.testing.assert_allclose(loss, metrics["bellman_error"], rtol=1e-6)


def test_calibration_never_lets_the_policys_values_fall_below_the_returns(start):
    state, batch = start
    batch = batch._replace(returns=jnp.full_like(batch.returns, 50.0))
    config = changed(importance_sampling=False)
    values = calql.values_at_actions(
        config, jax.random.key(3), state.networks.critics, state.networks.policy, batch
    )
    assert np.all(np.asarray(values[:, : config.n_actions]) < 50.0)  # uniform ones are left alone
    np.testing.assert_allclose(values[:, config.n_actions :], 50.0)


def test_calibrated_values_push_no_gradient_into_the_critics(start):
    """Where the returns win, the policy's actions don't push the critic down any more."""
    state, batch = start
    batch = batch._replace(returns=jnp.full_like(batch.returns, 50.0))
    config = changed(importance_sampling=False)

    def pushed(critics):
        values = calql.values_at_actions(
            config, jax.random.key(3), critics, state.networks.policy, batch
        )
        return values[:, config.n_actions :].sum()

    assert all(
        not np.any(leaf) for leaf in jax.tree.leaves(jax.grad(pushed)(state.networks.critics))
    )


def test_returns_below_all_values_make_it_cql(start):
    state, batch = start
    low = batch._replace(returns=jnp.full_like(batch.returns, -1e6))
    calibrated, _ = gap_of(CONFIG, (state, low))
    plain, _ = gap_of(changed(calibrated=False), (state, batch))
    np.testing.assert_allclose(calibrated, plain, rtol=1e-6)


def test_importance_sampling_divides_by_the_density_the_action_was_drawn_with(start):
    state, batch = start
    low = batch._replace(returns=jnp.full_like(batch.returns, -1e6))
    arguments = (jax.random.key(3), state.networks.critics, state.networks.policy, low)
    weighted = calql.values_at_actions(CONFIG, *arguments)
    plain = calql.values_at_actions(changed(importance_sampling=False), *arguments)
    density = np.asarray(plain - weighted)
    # Uniform on [-1, 1] has density 1/2; one action dimension.
    np.testing.assert_allclose(density[:, : CONFIG.n_actions], np.log(0.5), atol=1e-4)
    assert density[:, CONFIG.n_actions :].std() > 0.01


def test_the_bellman_target_takes_the_smaller_target_critic_and_stops_at_terminals(start):
    state, batch = start
    batch = batch._replace(terminals=jnp.ones_like(batch.terminals))
    _, metrics = gap_of(CONFIG, (state, batch))
    values = twin_values(state.networks.critics, batch.states, batch.actions)
    expected = jnp.sum(jnp.mean(jnp.square(values - batch.rewards), axis=-1))
    np.testing.assert_allclose(metrics["bellman_error"], expected, rtol=1e-5)


def test_the_density_of_a_given_action_is_that_of_the_noise_that_makes_it(start):
    state, batch = start
    policy = state.networks.policy
    noise = 0.5 * jax.random.normal(jax.random.key(4), batch.actions.shape)
    actions = policy_sample(policy, batch.states, noise)
    inside = np.abs(np.asarray(actions[:, 0])) < 0.99  # arctanh loses digits at the bounds
    np.testing.assert_allclose(
        np.asarray(calql.squashed_log_prob(policy, batch.states, actions))[inside],
        np.asarray(policy_log_prob(policy, batch.states, noise))[inside],
        rtol=2e-3,
        atol=2e-3,
    )


@pytest.mark.slow
def test_the_best_actions_of_a_known_world_are_found_in_random_data():
    method = calql.learner(CONFIG)

    @jax.jit
    def run(key, data):
        state = method.init(key, data)
        return jax.lax.scan(lambda s, _: method.step(s, data), state, length=500)

    state, metrics = run(jax.random.key(0), random_walk.transitions())
    teacher = calql.teacher(state)
    states = jnp.array([-0.8, -0.6, 0.6, 0.8])[:, None]
    actions = policy_mode(teacher.policy, teacher.norm.apply(states))[:, 0]
    assert np.all(np.asarray(actions) * np.array([1, 1, -1, -1]) > 0.5)
    assert all(np.all(np.isfinite(values)) for values in metrics.values())


def step_of(start, log_temperature=0.0, **fields):
    """One update of a state whose temperature is given."""
    state = start[0]
    networks = state.networks._replace(log_temperature=jnp.float32(log_temperature))
    method = calql.learner(changed(batch=8, **fields))
    return jax.jit(method.step)(state._replace(networks=networks), random_walk.transitions())


def test_the_temperature_rises_where_the_entropy_is_below_what_is_wanted(start):
    for wanted, direction in [(50.0, 1), (-50.0, -1)]:
        after, _ = step_of(start, target_entropy=wanted)
        assert np.sign(after.networks.log_temperature) == direction


def test_the_wanted_entropy_is_minus_the_number_of_action_dimensions(start):
    size = start[1].actions.shape[-1]
    for entropy, direction in [(-size - 1.0, 1), (-size + 1.0, -1)]:
        # A normal distribution around 0 that is narrow enough for tanh to be the identity.
        log_std = entropy / size - 0.5 * np.log(2 * np.pi * np.e)
        state = start[0]
        policy = jax.tree.map(jnp.zeros_like, state.networks.policy)
        policy = policy._replace(log_std_off=jnp.float32(log_std))
        given = state._replace(networks=state.networks._replace(policy=policy))
        after, metrics = step_of((given, None), cloning_steps=0)
        np.testing.assert_allclose(metrics["entropy"], entropy, atol=0.8)
        assert np.sign(after.networks.log_temperature) == direction


def test_the_policys_loss_is_temperature_times_log_density_minus_value(start):
    """So it falls by the entropy for every unit of temperature."""
    (_, one), (_, three) = step_of(start), step_of(start, np.log(3.0))
    change = three["policy_loss"] - one["policy_loss"]
    np.testing.assert_allclose(change, -2 * one["entropy"], rtol=1e-4)


@pytest.mark.slow
def test_cloning_ends_after_its_steps(start):
    state = start[0]._replace(step=jnp.int32(5))
    _, plain = step_of((state, None))
    _, over = step_of((state, None), cloning_steps=5)
    _, cloning = step_of((state, None), cloning_steps=6)
    assert plain["policy_loss"] == over["policy_loss"]
    assert plain["policy_loss"] != cloning["policy_loss"]


def test_a_backed_up_entropy_raises_the_targets_of_a_wide_policy(start):
    """r + gamma (min Q - lambda log pi): log pi < 0 adds to a target."""
    state, batch = start
    zero = jax.tree.map(jnp.zeros_like, state.networks.critics)
    policy = jax.tree.map(jnp.zeros_like, state.networks.policy)  # std 1: log pi is about -1 A
    networks = state.networks._replace(policy=policy, critics=zero)
    batch = batch._replace(
        rewards=jnp.full_like(batch.rewards, 20.0), terminals=jnp.zeros_like(batch.terminals)
    )
    errors = [
        calql.critic_loss(
            changed(backup_entropy=on), jax.random.key(0), zero, zero, networks, batch
        )
        for on in (False, True)
    ]
    plain, entropic = (error[1]["bellman_error"] for error in errors)
    np.testing.assert_allclose(plain, 2 * 20.0**2, rtol=1e-5)
    noise = jax.random.normal(jax.random.key(5), (4000, *batch.actions.shape[1:]))
    states = jnp.zeros((4000, batch.states.shape[-1]))
    log_prob = policy_log_prob(policy, states, noise).mean()
    np.testing.assert_allclose(jnp.sqrt(entropic / 2), 20 - 0.9 * log_prob, atol=0.3)


def test_the_uniform_density_is_a_half_in_every_dimension(start):
    """So actions of three dimensions, worth 0, are counted as log 8."""
    one = jnp.zeros((2, 1))
    batch = start[1]._replace(states=one, next_states=one, actions=jnp.zeros((2, 3)))
    policy = init_policy(jax.random.key(0), 1, 3, hidden=4, n_layers=2)
    critics = jax.tree.map(jnp.zeros_like, init_twins(jax.random.key(1), 1, 3, hidden=4))
    config = changed(calibrated=False)
    values = calql.values_at_actions(config, jax.random.key(2), critics, policy, batch)
    np.testing.assert_allclose(values[:, : config.n_actions], np.log(8.0), rtol=1e-6)


@pytest.mark.parametrize("density", [calql.squashed_log_prob, iql.unsquashed_log_prob])
def test_densities_of_actions_at_the_bounds_are_finite_in_half_precision(density):
    policy = init_policy(jax.random.key(0), 2, 1, hidden=8, n_layers=2)
    states, actions = jnp.ones((3, 2)), jnp.array([[1.0], [-1.0], [0.25]])
    expected = density(policy, states, actions)
    halves = density(policy, states.astype(jnp.bfloat16), actions.astype(jnp.bfloat16))
    assert halves.dtype == jnp.float32
    np.testing.assert_allclose(halves, expected, rtol=2e-2)
