"""Densities integrate to one and find a Gaussian; weights are positive with mean one."""

from __future__ import annotations

from functools import cache

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from jaxmethods.obd import density
from jaxmethods.obd.density import (
    FlowConfig,
    fit_density,
    flow_log_prob,
    init_flow,
    made,
    neighbor_density,
    state_log_prob,
    to_noise,
)
from tests.programs import normal

sdw_weights = jax.jit(density.sdw_weights, static_argnames="size")


@cache
def random_flow(size: int, seed: int = 0):
    """A flow far from the identity."""
    params = jax.jit(init_flow, static_argnums=(1, 2, 3))(jax.random.key(seed), size, 3, 16)
    first, second, (weights, biases) = params.layers
    biases = biases + 0.3 * normal(seed + 1, *biases.shape)
    return params._replace(layers=(first, second, (60.0 * weights, biases)))


def test_a_block_is_autoregressive():
    layers = jax.tree.map(lambda leaf: leaf[0], random_flow(4).layers)
    x = jax.random.normal(jax.random.key(2), (4,))
    for output in (0, 1):
        slope = np.asarray(jax.jit(jax.jacobian(lambda x, o=output: made(layers, x)[o]))(x))
        assert not np.any(np.triu(slope))
        assert np.abs(np.tril(slope, -1)).max() > 1e-2


def test_every_output_sees_all_earlier_inputs():
    layers = jax.tree.map(lambda leaf: leaf[0], random_flow(4).layers)
    points = jax.random.normal(jax.random.key(2), (64, 4))
    slopes = jax.vmap(jax.jacobian(lambda x: made(layers, x)[0]))(points)
    seen = np.abs(np.asarray(slopes)).max(0) > 0
    np.testing.assert_array_equal(seen, np.tril(np.ones((4, 4), bool), -1))


def test_the_log_determinant_is_that_of_the_jacobian():
    params = random_flow(3)
    x = jax.random.normal(jax.random.key(3), (3,))
    slope = jax.jacobian(lambda x: to_noise(params, x)[0])(x)
    np.testing.assert_allclose(
        to_noise(params, x)[1], np.linalg.slogdet(np.asarray(slope, float))[1], rtol=1e-4
    )


def test_a_flow_of_float64_takes_states_of_float32():
    """What is drawn with float64 switched on is wider than the data."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), random_flow(3))
        states = normal(0, 2, 3)
        narrow, wide = (
            density.flow_log_prob(params, jnp.asarray(states, dtype))
            for dtype in (jnp.float32, jnp.float64)
        )
        assert narrow.dtype == jnp.float64
        np.testing.assert_allclose(narrow, wide, rtol=1e-4)


def test_a_random_flow_integrates_to_one():
    params = random_flow(2)
    axis = jnp.linspace(-15.0, 15.0, 401)
    grid = jnp.stack(jnp.meshgrid(axis, axis), axis=-1)
    total = jnp.sum(jnp.exp(flow_log_prob(params, grid))) * (axis[1] - axis[0]) ** 2
    np.testing.assert_allclose(total, 1.0, rtol=0.02)


@pytest.fixture(scope="module")
def gaussian():
    """Correlated Gaussian states [4000, 2] and their log-density."""
    factor = jnp.array([[1.0, 0.0], [0.8, 0.6]])
    states = jax.random.normal(jax.random.key(0), (4000, 2)) @ factor.T
    noise = states @ jnp.linalg.inv(factor).T
    truth = jnp.sum(-0.5 * noise**2 - 0.5 * jnp.log(2 * jnp.pi), -1) - jnp.log(0.6)
    return states, truth


def test_a_fitted_flow_is_the_gaussian_it_was_fitted_to(gaussian):
    states, truth = gaussian
    config = FlowConfig(blocks=2, hidden=16, batch=512, learning_rate=1e-2, steps=300)
    log_prob = fit_density(jax.random.key(1), states, config)(states)
    # The mean difference is the Kullback-Leibler divergence, estimated on the data.
    assert abs(float(jnp.mean(truth - log_prob))) < 0.02
    assert float(jnp.corrcoef(truth, log_prob)[0, 1]) > 0.97


def test_flows_of_one_config_are_fitted_by_one_program(gaussian):
    config = FlowConfig(blocks=1, hidden=4, batch=4, steps=2)
    before = density._fitted._cache_size()
    for seed in range(2):
        fit_density(jax.random.key(seed), gaussian[0][:8], config)
    assert density._fitted._cache_size() == before + 1


def test_neighbors_rank_states_like_the_density_does(gaussian):
    states, truth = gaussian
    log_prob = neighbor_density(states, neighbors=30)(states)
    assert float(jnp.corrcoef(truth, log_prob)[0, 1]) > 0.9


def test_neighbors_are_counted_by_distance():
    density = neighbor_density(jnp.array([[0.0], [1.0], [3.0]]), neighbors=2)
    np.testing.assert_allclose(
        density(jnp.array([[0.0], [3.0], [10.0]])), -np.log([1.0, 2.0, 9.0]), rtol=1e-5
    )


def test_more_neighbors_than_states_are_refused():
    with pytest.raises(ValueError, match="neighbors: expected 1 to the 3 states"):
        neighbor_density(jnp.zeros((3, 1)), neighbors=4)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_dont_change_the_density(gaussian, chunk):
    params = random_flow(2)
    states = gaussian[0][:50]
    np.testing.assert_allclose(
        state_log_prob(lambda x: flow_log_prob(params, x), states, chunk),
        flow_log_prob(params, states),
        rtol=1e-4,
        atol=1e-4,
    )


log_densities = st.lists(st.floats(-50.0, 50.0, width=32), min_size=2, max_size=60)


@given(log_densities, st.floats(0.0, 1.0, width=32), st.floats(-100.0, 100.0, width=32))
@settings(max_examples=25)
def test_weights_are_positive_have_mean_one_and_ignore_constants(log_p, tau, constant):
    log_p = jnp.array(log_p)
    weights = sdw_weights(log_p, tau)
    assert np.all(np.asarray(weights) >= 0)
    np.testing.assert_allclose(weights.mean(), 1.0, rtol=1e-4)
    np.testing.assert_allclose(sdw_weights(log_p + constant, tau), weights, rtol=2e-3, atol=1e-5)


@given(log_densities)
@settings(max_examples=25)
def test_strength_zero_gives_ones(log_p):
    np.testing.assert_array_equal(sdw_weights(jnp.array(log_p), 0.0), np.ones(len(log_p)))


@pytest.mark.parametrize("rare", [1, 30])
@pytest.mark.parametrize("tau", [0.0, 0.7])
def test_a_state_of_density_zero_weighs_as_the_rarest_of_the_others(rare, tau):
    known = jax.random.normal(jax.random.key(0), (170,))
    infinite = jnp.full(rare, -jnp.inf)
    weights = sdw_weights(jnp.concatenate([known, infinite]), tau)
    alike = sdw_weights(jnp.concatenate([known, jnp.full(rare, known.min())]), tau)
    np.testing.assert_allclose(weights, alike, rtol=1e-6)
    assert np.all(weights[170:] == weights.max())
    dense = sdw_weights(jnp.concatenate([known, -infinite]), tau)
    assert np.isfinite(dense).all()
    assert np.all(dense[170:] == dense.min())


def test_weights_stay_finite_at_the_ends():
    for log_p in ([-jnp.inf] * 3, [2.0], [-jnp.inf], [5.0, 5.0]):
        np.testing.assert_array_equal(sdw_weights(jnp.array(log_p), 1.0), np.ones(len(log_p)))
    far = sdw_weights(jnp.array([-3e38, -3e38, 0.0, -300.0, 1.0]), 1.0)
    np.testing.assert_allclose(far, [2.5, 2.5, 0.0, 0.0, 0.0], atol=1e-6)
    assert np.isnan(sdw_weights(jnp.array([0.0, jnp.nan, 1.0]), 1.0)).all()  # never hidden
    with pytest.raises(ValueError, match="log_p: expected the log-density of one state"):
        sdw_weights(jnp.zeros(0), 1.0)
    half = sdw_weights(jnp.linspace(-30, 30, 50).astype(jnp.float16), 1.0)
    np.testing.assert_allclose(half, sdw_weights(jnp.linspace(-30, 30, 50), 1.0), rtol=0.1)


def test_rarer_states_weigh_more_up_to_the_quantiles():
    log_p = jnp.linspace(-10.0, 10.0, 401)
    weights = np.asarray(sdw_weights(log_p, 0.5))
    assert np.all(np.diff(weights) <= 0)
    assert np.sum(weights == weights.max()) == 5  # 1 % of the rows share the bound
    np.testing.assert_allclose(weights[100] / weights[300], np.exp(0.5 * 10), rtol=1e-4)


def test_weights_are_clipped_to_the_quantiles_of_one_and_ninety_nine_percent():
    log_p = jnp.arange(101.0)
    weights = sdw_weights(log_p, 0.1)
    np.testing.assert_allclose(weights[0], weights[1], rtol=1e-5)
    np.testing.assert_allclose(weights[-1], weights[-2], rtol=1e-5)
    np.testing.assert_allclose(jnp.log(weights[1] / weights[2]), 0.1, rtol=1e-4)


def test_the_strength_is_per_dimension():
    log_p = jax.random.normal(jax.random.key(0), (50,))
    expected = sdw_weights(log_p / 7, 0.8)
    np.testing.assert_allclose(sdw_weights(log_p, 0.8, size=7), expected, rtol=1e-5)


def test_the_scales_of_a_flow_are_bounded():
    params = density.init_flow(jax.random.key(0), 3, 1, 8)
    layers = jax.tree.map(lambda leaf: 100 * leaf[0], params.layers)
    _, alpha = density.made(layers, 10 * jax.random.normal(jax.random.key(1), (50, 3)))
    low, high = density.ALPHA_BOUNDS
    assert (alpha.min(), alpha.max()) == (low, high)
