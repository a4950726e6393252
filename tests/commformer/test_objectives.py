"""Value normalization, advantages and the PPO loss at their limits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmethods.commformer import objectives
from jaxmethods.commformer.config import PPOConfig
from jaxmethods.commformer.objectives import PPOTargets

T, R, N = 7, 2, 3
seeds = st.integers(0, 2**31 - 1)
few = settings(max_examples=20)

update = jax.jit(objectives.value_norm_update)
normalize = jax.jit(objectives.value_norm_normalize)
denormalize = jax.jit(objectives.value_norm_denormalize)
gae = jax.jit(objectives.gae)


def normals(seed, count, shape=(T, R, N)):
    return jax.random.normal(jax.random.key(seed), (count, *shape))


def test_before_any_return_values_are_scaled_by_a_tenth():
    state = objectives.value_norm_init()
    np.testing.assert_allclose(denormalize(state, jnp.array([-3.0, 2.0])), [-0.3, 0.2], rtol=1e-6)


@few
@given(seeds, st.floats(-50, 50), st.floats(0.2, 20))
def test_after_one_update_the_returns_are_standardized(seed, mean, std):
    """Debiasing removes the weight of the zero start at once."""
    returns = mean + std * normals(seed, 1)[0]
    state = update(objectives.value_norm_init(), returns)
    normalized = normalize(state, returns)
    np.testing.assert_allclose(normalized.mean(), 0.0, atol=2e-3)
    np.testing.assert_allclose(normalized.std(), 1.0, rtol=5e-2)


@few
@given(seeds)
def test_denormalizing_undoes_normalizing(seed):
    first, second, values = 4 * normals(seed, 3)
    state = update(update(objectives.value_norm_init(), first), 3 + second)
    np.testing.assert_allclose(denormalize(state, normalize(state, values)), values, atol=1e-4)


@pytest.mark.parametrize("mean", [0.0, 100.0, 3000.0])
def test_moments_are_right_after_half_a_million_updates(mean):
    """Plain float32 moments say 0.01 for the variance of 1 about a mean of 100."""
    count, decay = 500_000, 0.99999
    draws = np.random.default_rng(0).normal(size=(1000, 2)).astype(np.float32)
    returns = jnp.asarray(draws) + mean

    @jax.jit
    def run(returns):
        def step(state, place):
            return objectives.value_norm_update(state, returns[place % 1000]), None

        start = objectives.value_norm_init()
        return jax.lax.scan(step, start, jnp.arange(count))[0]

    state = run(returns)
    batches = np.asarray(returns, np.float64)[np.arange(count) % 1000]
    weights = (1 - decay) * decay ** np.arange(count)[::-1]
    right = weights @ batches.mean(1) / weights.sum()
    spread = weights @ np.square(batches - right).mean(1) / weights.sum()
    np.testing.assert_allclose(state.debias, weights.sum(), rtol=1e-6)
    found = objectives.value_norm_moments(state)
    np.testing.assert_allclose(found[0], right, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found[1], spread, rtol=1e-4)


@pytest.mark.parametrize("value", [0.1, 100.1, 3000.7])
def test_equal_advantages_are_normalized_to_zero(value):
    """Not to the rounding of their mean."""
    advantages = jnp.full((7, 11, 3), value)
    np.testing.assert_array_equal(objectives.normalize_advantages(advantages), 0.0)


def test_the_variance_of_constant_returns_is_at_its_floor():
    state = update(objectives.value_norm_init(), jnp.full((4,), 2.0))
    mean, variance = objectives.value_norm_moments(state)
    np.testing.assert_allclose(mean, 2.0, rtol=1e-5)
    np.testing.assert_allclose(variance, 0.01, rtol=1e-6)


@few
@given(seeds)
def test_without_discount_the_advantage_is_reward_minus_value(seed):
    reward, value, bootstrap = normals(seed, 3)
    advantages, returns = gae(reward, value, bootstrap[0], jnp.ones((T, R, 1)), 0.0, 0.95)
    np.testing.assert_allclose(advantages, reward - value, atol=1e-6)
    np.testing.assert_allclose(returns, reward, atol=1e-6)


@few
@given(seeds)
def test_with_lambda_zero_the_advantage_is_the_temporal_difference(seed):
    reward, value, bootstrap = normals(seed, 3)
    advantages, _ = gae(reward, value, bootstrap[0], jnp.ones((T, R, 1)), 0.9, 0.0)
    following = jnp.concatenate([value[1:], bootstrap[:1]])
    np.testing.assert_allclose(advantages, reward + 0.9 * following - value, atol=1e-5)


@few
@given(seeds)
def test_with_lambda_one_the_return_is_the_discounted_sum_with_bootstrap(seed):
    reward, value, bootstrap = normals(seed, 3)
    _, returns = gae(reward, value, bootstrap[0], jnp.ones((T, R, 1)), 0.9, 1.0)
    expected = bootstrap[0]
    for step in reversed(range(T)):
        expected = reward[step] + 0.9 * expected
        np.testing.assert_allclose(returns[step], expected, atol=1e-5)


@few
@given(seeds)
def test_nothing_after_an_episode_end_reaches_the_steps_before(seed):
    reward, value, other_reward, other_value = normals(seed, 4)
    end = 3
    mask = jnp.ones((T, R, N)).at[end].set(0.0)
    later = jnp.arange(T)[:, None, None] > end
    before, _ = gae(reward, value, value[0], mask, 0.99, 0.95)
    after, _ = gae(
        jnp.where(later, other_reward, reward),
        jnp.where(later, other_value, value),
        other_value[0],
        mask,
        0.99,
        0.95,
    )
    np.testing.assert_array_equal(before[: end + 1], after[: end + 1])
    np.testing.assert_allclose(before[end], reward[end] - value[end], atol=1e-6)
    assert not np.allclose(before[end + 1], after[end + 1])
    broken, _ = gae(
        jnp.where(later, jnp.nan, reward),
        jnp.where(later, jnp.inf, value),
        jnp.full_like(value[0], jnp.nan),
        mask,
        0.99,
        0.95,
    )
    np.testing.assert_array_equal(before[: end + 1], broken[: end + 1])


def test_advantages_are_standardized_over_the_active_entries_alone():
    advantages = 3 + 5 * normals(0, 1)[0]
    active = (normals(1, 1)[0] > -0.5).astype(jnp.float32)
    normalized = objectives.normalize_advantages(advantages, active)
    kept = np.asarray(normalized)[np.asarray(active) == 1]
    np.testing.assert_allclose(kept.mean(), 0.0, atol=1e-6)
    np.testing.assert_allclose(kept.std(), 1.0, rtol=1e-4)
    disturbed = objectives.normalize_advantages(jnp.where(active == 1, advantages, 1e3), active)
    np.testing.assert_allclose(np.asarray(disturbed)[np.asarray(active) == 1], kept, atol=1e-6)
    absent = objectives.normalize_advantages(jnp.where(active == 1, advantages, jnp.nan), active)
    np.testing.assert_allclose(np.asarray(absent)[np.asarray(active) == 1], kept, atol=1e-6)


def value_losses(errors, delta=10.0):
    """Of predictions that are off by so much, and were when the actions were taken."""
    zero = jnp.zeros(())
    return jax.vmap(lambda e: objectives.value_loss(e, e, zero, 0.2, delta))(errors)


def test_the_value_loss_is_a_symmetric_huber_loss():
    errors = jnp.array([-30.0, 30.0, -4.0, 4.0])
    np.testing.assert_allclose(value_losses(errors), [250.0, 250.0, 8.0, 8.0])


def test_its_gradient_is_the_clipped_error():
    errors = jnp.linspace(-25, 25, 41)
    gradient = jax.vmap(jax.grad(lambda e: value_losses(jnp.array([e]))[0]))(errors)
    np.testing.assert_allclose(gradient, np.clip(errors, -10, 10), rtol=1e-6)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.0, 0.5 * 0.8**2),  # at the target, from which the clipped change stays 0.8 away
        (-1.0, 0.5 * 2.0**2),  # further off than the clipped change
    ],
)
def test_the_value_loss_is_the_worse_of_the_plain_and_the_clipped_one(value, expected):
    """v_old = 0, target 1, clip 0.2."""
    old, target = jnp.zeros(1), jnp.ones(1)
    loss = objectives.value_loss(jnp.array([value]), old, target, clip=0.2, delta=10.0)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def loss_of(log_prob, entropy, value, minibatch, **coefficients):
    config = PPOConfig(**coefficients)
    state = objectives.value_norm_init()
    return objectives.ppo_loss(log_prob, entropy, value, minibatch, state, config)


def minibatch(seed, active=None):
    old_log_prob, old_value, advantage, returns = normals(seed, 4, (6, N))
    return PPOTargets(old_log_prob, old_value, advantage, returns, active)


def test_at_ratio_one_the_policy_loss_is_minus_the_mean_advantage():
    batch = minibatch(0)
    zeros = jnp.zeros((6, N))
    _, (_, metrics) = loss_of(batch.old_log_prob, zeros, zeros, batch)
    np.testing.assert_allclose(metrics["policy_loss"], -batch.advantage.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["ratio"], 1.0, rtol=1e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_ratio_that_has_moved_far_enough_gets_no_gradient(sign):
    """Beyond the clip range in the direction of the advantage; against it the gradient stays."""
    batch = minibatch(1)._replace(advantage=jnp.full((6, N), sign))
    zeros = jnp.zeros((6, N))

    def policy_loss(log_prob):
        return loss_of(log_prob, zeros, zeros, batch, clip=0.1)[1][1]["policy_loss"]

    along = jax.grad(policy_loss)(batch.old_log_prob + 0.3 * sign)
    against = jax.grad(policy_loss)(batch.old_log_prob - 0.3 * sign)
    np.testing.assert_array_equal(along, 0.0)
    assert np.all(np.asarray(against) * sign < 0)


def test_inactive_agents_have_no_gradient():
    active = jnp.ones((6, N)).at[2:4, 1].set(0.0)
    batch = minibatch(2, active)
    inputs = tuple(normals(3, 3, (6, N)))
    gradients = jax.grad(lambda x: loss_of(*x, batch)[0])(inputs)
    for gradient in gradients:
        np.testing.assert_array_equal(np.asarray(gradient)[active == 0], 0.0)
        assert np.any(np.asarray(gradient)[active == 1] != 0)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_what_is_no_number_of_inactive_agents_reaches_nobody(value):
    active = jnp.ones((6, N)).at[2:4, 1].set(0.0)
    batch = minibatch(2, active)
    inputs = tuple(normals(3, 3, (6, N)))

    def found(absent):
        own = PPOTargets(*(jnp.where(active > 0, leaf, absent) for leaf in batch[:-1]), active)
        return jax.value_and_grad(lambda x: loss_of(*x, own), has_aux=True)(inputs)

    jax.tree.map(np.testing.assert_array_equal, found(value), found(0.0))


def test_all_active_is_the_same_as_no_mask():
    inputs = tuple(normals(4, 3, (6, N)))
    plain, _ = loss_of(*inputs, minibatch(5))
    masked, _ = loss_of(*inputs, minibatch(5, jnp.ones((6, N))))
    np.testing.assert_allclose(plain, masked, rtol=1e-6)


def test_a_minibatch_of_inactive_agents_has_loss_zero():
    inputs = tuple(normals(4, 3, (6, N)))
    loss, _ = loss_of(*inputs, minibatch(5, jnp.zeros((6, N))))
    assert loss == 0.0


def test_the_loss_adds_its_terms_with_their_coefficients():
    inputs = tuple(normals(6, 3, (6, N)))
    loss, (_, metrics) = loss_of(
        *inputs, minibatch(7), entropy_coefficient=0.3, value_coefficient=0.7
    )
    expected = metrics["policy_loss"] - 0.3 * metrics["entropy"] + 0.7 * metrics["value_loss"]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_the_value_target_is_normalized_by_statistics_that_know_the_returns():
    """A value equal to the standardized return has no loss, although the statistics were empty."""
    batch = minibatch(8)
    state = objectives.value_norm_update(objectives.value_norm_init(), batch.returns)
    target = objectives.value_norm_normalize(state, batch.returns)
    batch = batch._replace(old_value=target)
    zeros = jnp.zeros((6, N))
    _, (after, metrics) = loss_of(zeros, zeros, target, batch)
    np.testing.assert_allclose(metrics["value_loss"], 0.0, atol=1e-12)
    np.testing.assert_array_equal(jnp.stack(after), jnp.stack(state))


def test_dimensions_of_a_continuous_action_have_ratios_of_their_own():
    """The policy's loss is the sum of what each dimension's would be alone."""
    keys = jax.random.split(jax.random.key(0), 4)
    log_prob = 0.3 * jax.random.normal(keys[0], (5, 2, 3))
    old = 0.3 * jax.random.normal(keys[1], (5, 2, 3))
    advantage, value = jax.random.normal(keys[2], (5, 2)), jax.random.normal(keys[3], (5, 2))
    config, norm = PPOConfig(clip=0.1), objectives.value_norm_init()

    def policy_loss(log_prob, old):
        batch = PPOTargets(old, value, advantage, value)
        entropy = jnp.ones_like(log_prob)
        loss, (_, metrics) = objectives.ppo_loss(log_prob, entropy, value, batch, norm, config)
        assert loss.shape == ()
        assert metrics["entropy"] == 1
        return metrics["policy_loss"]

    alone = sum(policy_loss(log_prob[..., i], old[..., i]) for i in range(3))
    np.testing.assert_allclose(policy_loss(log_prob, old), alone, rtol=1e-5)
