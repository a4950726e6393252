"""CommFormer's update where float64 is switched on, and its sums in half precision."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import commformer, envs
from jaxmethods.commformer import layers, objectives
from tests.programs import weights

SMALL = {"embed": 8, "heads": 1, "blocks": 1}
HALF = ["bfloat16", "float16"]


def updates(env="predator_prey", **network):
    method = commformer.trainer(
        envs.make(env),
        commformer.NetworkConfig(**(SMALL | network)),
        commformer.GraphConfig(),
        commformer.PPOConfig(environments=2, rollout=3, epochs=5),
        4,
    )
    state = jax.jit(method.init)(jax.random.key(0), None)
    return state, jax.jit(method.step)(state, None)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["commformer", "ippo"])
def test_an_update_under_x64_is_that_without(model):
    _, (expected, _) = updates(model=model)
    with jax.enable_x64(True):
        before, (after, metrics) = updates(model=model)
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, before)
    for level in ("lower", "upper"):
        own, other = (getattr(state.levels, level) for state in (after, expected))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), own, other)
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("env", ["traffic_junction", "predator_capture_prey"])
def test_environments_keep_their_types_under_x64(env):
    """A state that widens can neither be scanned nor reset."""

    def types():
        single = envs.make(env)
        vectorized = envs.vectorize(single)
        keys = jax.random.split(jax.random.key(0), 2)
        before = jax.eval_shape(vectorized.reset, keys)
        action = jax.ShapeDtypeStruct((2, single.num_agents), jnp.int32)
        after = jax.eval_shape(vectorized.step, before[0], action)
        return [[leaf.dtype for leaf in jax.tree.leaves(x)] for x in (before[0], after[0])]

    expected, _ = types()
    with jax.enable_x64(True):
        assert types() == [expected, expected]


@pytest.mark.parametrize("offset", [0, 100, 3000])
def test_layer_norm_far_from_zero_is_that_of_float64(offset):
    """In spreads: E[x^2] - E[x]^2 in float32 has lost everything at 3000."""
    x = np.asarray(offset + np.random.default_rng(0).normal(size=(50, 30)), np.float32)
    exact = (x.astype(float) - x.astype(float).mean(-1, keepdims=True)) / np.sqrt(
        x.astype(float).var(-1, keepdims=True) + layers.EPSILON
    )
    own = layers.layer_norm(jnp.asarray(x), jnp.ones(30), jnp.zeros(30))
    np.testing.assert_allclose(own, exact, atol=3e-6 + 3 * offset * 2**-23)


def test_raw_observations_far_from_zero_reach_mappo_in_bfloat16():
    """They are rounded when they are normalized, not before: 3000 + x is 3000 in bfloat16."""
    config = commformer.NetworkConfig(**SMALL, model="mappo", dtype="bfloat16")
    network = commformer.policy.make_network(config, 3, 5)
    near = jnp.round(jax.random.normal(jax.random.key(1), (4, 3, 40)) * 64) / 64
    params = weights(lambda key: commformer.policy.init(network, key, near))
    encode = jax.jit(partial(network.apply, method="encode"))
    values = [encode(params, obs, jnp.ones((3, 3))).value for obs in (near, 3000 + near)]
    np.testing.assert_allclose(*values, atol=0.1 * float(jnp.std(values[0])))


@pytest.mark.parametrize("dtype", ["float32", *HALF])
@pytest.mark.parametrize(("low", "high"), [(0, 256), (195, 206), (250, 256)])
@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_the_normalized_dense_layer_keeps_the_variation_of_observations(dtype, low, high, kind):
    """Its error is that of rounding the normalized observations, wherever their mean is."""
    x = np.random.default_rng(0).integers(low, high, (50, 300))
    module = layers.NormalizedDense(16, 2**0.5, dtype)
    params = jax.jit(module.init)(jax.random.key(0), jnp.asarray(x, kind))
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, float), params)["params"]
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + layers.EPSILON)
    exact = (normal * weights["scale"] + weights["shift"]) @ weights["kernel"] + weights["bias"]
    own = np.asarray(module.apply(params, jnp.asarray(x, kind)), float)
    np.testing.assert_allclose(
        own, exact, atol=6 * float(jnp.finfo(dtype).eps) * exact.std() + 5e-6
    )


@pytest.mark.parametrize("dtype", HALF)
def test_statistics_of_half_precision_returns_are_those_of_float32(dtype):
    returns = jnp.asarray(200.0 + jax.random.normal(jax.random.key(0), (4000,)), dtype)
    exact = np.asarray(returns, float)
    state = objectives.value_norm_update(objectives.value_norm_init(), returns)
    assert {leaf.dtype for leaf in state} == {jnp.dtype("float32")}
    np.testing.assert_allclose(state.mean / state.debias, exact.mean(), rtol=1e-5)
    np.testing.assert_allclose(state.mean_square / state.debias, (exact**2).mean(), rtol=1e-5)
    normalized = objectives.normalize_advantages(returns)
    np.testing.assert_allclose(normalized, (exact - exact.mean()) / exact.std(), atol=1e-3)


@pytest.mark.parametrize("dtype", HALF)
def test_advantages_of_half_precision_rewards_are_summed_in_float32(dtype):
    """A thousand rewards of 1 are worth (1 - g^T) / (1 - g); bfloat16 stops at 256."""
    reward = jnp.ones((1000, 1), dtype)
    advantages, _ = objectives.gae(reward, 0 * reward, 0 * reward[0], reward, 0.999, 1.0)
    np.testing.assert_allclose(advantages[0, 0], (1 - 0.999**1000) / 0.001, rtol=1e-4)
