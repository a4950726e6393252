"""The lean layers compute what Flax's layers compute, and have their gradients."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.commformer import layers
from tests import programs

SHAPE = (4, 3, 10)


def normal(seed, shape):
    return programs.normal(seed, *shape)


def affine(seed, width):
    return 1 + 0.3 * normal(seed, (width,)), 0.5 * normal(seed + 1, (width,))


def value_and_pullback(function, cotangent, *inputs):
    def both(*inputs):
        value, pullback = jax.vjp(function, *inputs)
        return value, pullback(cotangent)

    return jax.jit(both)(*inputs)


def assert_trees_close(actual, expected, tolerance=2e-5):
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance),
        actual,
        expected,
    )


def test_layer_norm_and_its_gradient_are_those_of_flax():
    def ours(x, scale, bias):
        return layers.LayerNorm().apply({"params": {"scale": scale, "bias": bias}}, x)

    def theirs(x, scale, bias):
        norm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)
        return norm.apply({"params": {"scale": scale, "bias": bias}}, x)

    inputs = (0.7 + 2 * normal(0, SHAPE), *affine(1, SHAPE[-1]))
    cotangent = normal(3, SHAPE)
    assert_trees_close(
        value_and_pullback(ours, cotangent, *inputs), value_and_pullback(theirs, cotangent, *inputs)
    )


def test_dense_and_its_gradient_are_those_of_flax():
    params = programs.weights(nn.Dense(6).init, np.ones(SHAPE, np.float32))
    cotangent = normal(3, (*SHAPE[:-1], 6))
    ours, theirs = (
        value_and_pullback(layer.apply, cotangent, params, normal(1, SHAPE))
        for layer in (layers.Dense(6), nn.Dense(6))
    )
    assert_trees_close(ours, theirs)


class Composition(nn.Module):
    """What `NormalizedDense` stands for."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(6)(nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)(x))


@jax.jit
def composed(scale, shift, kernel, bias, x):
    norm, dense = {"scale": scale, "bias": shift}, {"kernel": kernel, "bias": bias}
    return Composition().apply({"params": {"LayerNorm_0": norm, "Dense_0": dense}}, x)


@jax.jit
def collapsed(scale, shift, kernel, bias, x):
    params = {"scale": scale, "shift": shift, "kernel": kernel, "bias": bias}
    return layers.NormalizedDense(6, 1.0).apply({"params": params}, x)


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_the_normalized_dense_layer_and_its_gradient_are_those_of_norm_then_dense(offset):
    weights = (*affine(1, SHAPE[-1]), normal(4, (SHAPE[-1], 6)), normal(5, (6,)))
    inputs = (*weights, offset + normal(6, SHAPE))
    cotangent = normal(7, (*SHAPE[:-1], 6))
    ours, theirs = (value_and_pullback(f, cotangent, *inputs) for f in (collapsed, composed))
    assert_trees_close(ours, theirs, 1e-4 * (1 + offset))


def test_the_normalized_dense_layer_takes_integers_as_they_are():
    weights = (*affine(1, SHAPE[-1]), normal(4, (SHAPE[-1], 6)), normal(5, (6,)))
    integers = jax.random.randint(jax.random.key(0), SHAPE, -3, 9)
    expected = composed(*weights, integers.astype(jnp.float32))
    for dtype in (jnp.int8, jnp.int32, jnp.float32):
        assert_trees_close(collapsed(*weights, integers.astype(dtype)), expected)


def test_a_constant_observation_is_the_same_as_none():
    weights = (*affine(1, SHAPE[-1]), normal(4, (SHAPE[-1], 6)), normal(5, (6,)))
    zero, constant = (collapsed(*weights, jnp.full(SHAPE, c, jnp.int8)) for c in (0, 5))
    np.testing.assert_allclose(zero, constant, atol=2e-2)
    np.testing.assert_allclose(zero[0, 0], weights[1] @ weights[2] + weights[3], rtol=1e-5)
