"""Depth as an axis: a padded policy is the plain one of its depth, in training too."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmethods.obd.objectives import bc_loss
from jaxmethods.obd.students import train_students
from jaxmethods.obd.types import SynSet
from jaxmethods.obd.zoo import (
    ARCHITECTURES,
    cross_architectures,
    gates_of,
    padded_policy,
    plain,
)
from jaxmethods.offline_rl.policies import tanh_gaussian

HIDDEN = 8
STATES = jax.random.normal(jax.random.key(0), (5, 3))
NOISE = jax.random.normal(jax.random.key(1), (5, 2))
SYN = SynSet(STATES, jnp.tanh(jax.random.normal(jax.random.key(2), (5, 2))))


def both(name: str):
    """The padded and the plain policy of an architecture, and padded parameters."""
    architecture = ARCHITECTURES[name]
    gates = jax.tree.map(lambda leaf: leaf[0], gates_of(architecture))
    padded = padded_policy(gates, HIDDEN)
    return (
        padded,
        tanh_gaussian(architecture.n_layers, HIDDEN, architecture.residual),
        padded.init(jax.random.key(3), 3, 2),
        architecture,
    )


def assert_close(left, right):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), left, right)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_padded_policy_acts_like_the_plain_one(name):
    padded, simple, params, architecture = both(name)
    own = plain(params, architecture)
    assert len(own.layers) == architecture.n_layers
    assert_close(padded.sample(params, STATES, NOISE), simple.sample(own, STATES, NOISE))
    assert_close(padded.mode(params, STATES), simple.mode(own, STATES))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_its_gradient_is_the_plain_ones_and_nothing_reaches_closed_layers(name):
    padded, simple, params, architecture = both(name)
    gradient = jax.grad(bc_loss)(params, SYN, NOISE, padded.sample)
    expected = jax.grad(bc_loss)(plain(params, architecture), SYN, NOISE, simple.sample)
    assert_close(plain(gradient, architecture), expected)
    closed = gradient.layers[architecture.n_layers - 1 : -1]
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(closed))


@pytest.fixture(scope="module")
def table():
    train = jax.jit(
        lambda key: cross_architectures(
            key, SYN, n_students=2, optimizer=optax.adam(1e-2), steps=5, hidden=HIDDEN
        )
    )
    return train(jax.random.key(4))


@pytest.mark.slow
def test_a_row_of_the_cross_table_is_that_architecture_trained_alone(table):
    for name in ("2", "residual"):
        index, architecture = list(ARCHITECTURES).index(name), ARCHITECTURES[name]
        padded = padded_policy(jax.tree.map(lambda leaf: leaf[0], gates_of(architecture)), HIDDEN)
        alone = train_students(
            jax.random.key(4), SYN, padded, n_students=2, optimizer=optax.adam(1e-2), steps=5
        )
        row = jax.tree.map(lambda leaf, i=index: leaf[i], table)
        assert_close(plain(row, architecture), plain(alone, architecture))


def test_the_residual_row_differs_from_the_plain_one_of_its_depth(table):
    names = list(ARCHITECTURES)
    weights = np.asarray(table.layers[0][0])
    assert np.abs(weights[names.index("4")] - weights[names.index("residual")]).max() > 1e-4
