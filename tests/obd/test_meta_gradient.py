"""The meta-gradient: agreement with differences, symmetries, and where it must vanish."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import bilevel
from jaxmethods.obd import meta_gradient as mg
from jaxmethods.obd import objectives
from jaxmethods.obd.objectives import outer_loss
from jaxmethods.obd.types import SynSet
from jaxmethods.offline_rl import policies as policy
from tests.obd import small


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def gradient(syn=None, noise=None, batch=None, lr=0.1, momentum=None, **how):
    syn = small.syn() if syn is None else syn
    noise = small.noise() if noise is None else noise
    batch = small.batch() if batch is None else batch

    def run(syn, noise, batch):
        return mg.meta_gradient(syn, small.student(), noise, batch, lr, momentum, **how)

    return jax.jit(run)(syn, noise, batch)


def assert_equal(actual, expected, rtol=1e-10):
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=rtol * scale), actual, expected
    )


def test_the_loss_jumps_at_a_students_kink_and_the_gradient_is_that_of_a_piece():
    """A unit that wakes on a pair changes the inner gradient at once, and so the clone.

    So a difference across the jump is no slope, however short; on either side it is the gradient.
    """
    syn, noise, batch, params = small.syn(), small.noise(1), small.batch(), small.student()
    weights, biases = (np.asarray(leaf) for leaf in params.layers[0])
    state, unit = np.asarray(syn.states[0]), 0
    kink = -(state[1:] @ weights[1:, unit] + biases[unit]) / weights[0, unit]

    def loss(first):
        moved = syn._replace(states=jnp.asarray(syn.states).at[0, 0].set(first))
        clone, _ = mg.inner_train(params, moved, noise, 0.1)
        return outer_loss(clone, batch)

    width = 1e-6
    points = kink + width * np.array([-3.0, -2.0, -1.0, 1.0, 2.0, 3.0])
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(loss)))(points)
    left, right = values[2] - values[0], values[5] - values[3]
    np.testing.assert_allclose([left, right], 2 * width * slopes[jnp.array([1, 4])], rtol=1e-4)
    assert abs(values[3] - values[2]) > 100 * abs(left)
    assert abs(slopes).min() > 0


def zero(tree):
    return all(not leaf.any() for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_central_differences(momentum):
    syn, noise, batch = small.syn(), small.noise(), small.batch()

    @jax.jit
    def loss(syn):
        clone, _ = mg.inner_train(small.student(), syn, noise, 0.1, momentum)
        return outer_loss(clone, batch)

    found = gradient(momentum=momentum).gradient
    picks = np.random.default_rng(0).integers([small.N, small.S + small.A], size=(10, 2))
    step = 1e-6
    for row, column in picks:
        name = "states" if column < small.S else "actions"
        place = (row, column if name == "states" else column - small.S)
        ahead, behind = (
            loss(syn._replace(**{name: jnp.asarray(getattr(syn, name)).at[place].add(sign * step)}))
            for sign in (1, -1)
        )
        expected = (ahead - behind) / (2 * step)
        actual = getattr(found, name)[place]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.slow
def test_truncation_to_all_steps_is_exact_and_to_none_is_zero():
    exact = gradient().gradient
    assert_equal(gradient(mode=bilevel.Truncated(small.T)).gradient, exact)
    assert zero(gradient(mode=bilevel.Truncated(0)).gradient)
    some = gradient(mode=bilevel.Truncated(2)).gradient
    assert not np.allclose(some.states, exact.states, rtol=1e-3)


def test_without_inner_steps_or_with_rate_zero_there_is_no_gradient():
    assert zero(gradient(noise=small.noise(0)).gradient)
    assert zero(gradient(lr=0.0).gradient)


def test_a_perfect_clone_has_neither_loss_nor_gradient():
    syn, noise, batch = small.syn(), small.noise(), small.batch()
    clone, _ = mg.inner_train(small.student(), syn, noise)
    own = policy.policy_sample(clone, batch.states, batch.noise)
    found = gradient(batch=batch._replace(targets=own))
    assert found.loss < 1e-28
    assert max(float(jnp.abs(leaf).max()) for leaf in found.gradient) < 1e-14


def test_scaled_weights_scale_the_gradient():
    batch = small.batch()
    scaled = gradient(batch=batch._replace(weights=3.0 * batch.weights)).gradient
    assert_equal(scaled, jax.tree.map(lambda g: 3.0 * g, gradient().gradient))


def test_permuted_pairs_permute_the_gradient():
    order = np.random.default_rng(1).permutation(small.N)
    syn, noise = small.syn(), small.noise()
    permuted = gradient(SynSet(*(leaf[order] for leaf in syn)), noise[:, order]).gradient
    assert_equal(permuted, jax.tree.map(lambda g: g[order], gradient().gradient))


def test_doubled_pairs_leave_the_clone_and_halve_the_gradient():
    syn, noise = small.syn(), small.noise()
    doubled = SynSet(*(jnp.concatenate([leaf, leaf]) for leaf in syn))
    twice = jnp.concatenate([noise, noise], axis=1)
    once_clone, _ = mg.inner_train(small.student(), syn, noise)
    assert_equal(mg.inner_train(small.student(), doubled, twice)[0], once_clone)
    found = gradient(doubled, twice).gradient
    half = jax.tree.map(lambda g: jnp.concatenate([g, g]) / 2, gradient().gradient)
    assert_equal(found, half)


def test_pairs_beyond_the_size_have_no_part():
    size = 4
    syn, noise = small.syn(), small.noise()
    found = gradient(size=size).gradient
    cut = SynSet(*(leaf[:size] for leaf in syn))
    expected = gradient(cut, noise[:, :size]).gradient
    assert_equal(jax.tree.map(lambda g: g[:size], found), expected)
    assert zero(jax.tree.map(lambda g: g[size:], found))


def test_fresh_backward_noise_is_another_gradient_of_the_same_loss():
    fresh = jax.random.normal(jax.random.key(9), small.noise().shape)
    exact, published = gradient(), gradient(backward_noise=fresh)
    assert exact.loss == published.loss
    assert not np.allclose(exact.gradient.states, published.gradient.states, rtol=1e-2)
    assert_equal(gradient(backward_noise=small.noise()).gradient, exact.gradient)


def test_avpbc_of_a_constant_critic_of_one_over_beta_is_pbc():
    config = small.CONFIG
    source = small.source()
    beta_w = 0.25
    layers = source.teacher.q1
    constant = tuple((jnp.zeros_like(w), jnp.zeros_like(b)) for w, b in layers)
    constant = (*constant[:-1], (constant[-1][0], jnp.full(1, 1 / beta_w)))
    source = source._replace(teacher=source.teacher._replace(q1=constant))
    batches = [
        objectives.make_outer_batch(
            jax.random.key(5), source, config.model_copy(update={"objective": o}), beta_w
        )
        for o in ("avpbc", "pbc", "pbc_scaled")
    ]
    for batch in batches[1:]:
        jax.tree.map(np.testing.assert_array_equal, batch, batches[0])


def test_state_density_weights_of_one_change_nothing_and_others_multiply():
    source, config = small.source(), small.CONFIG

    def weights(density):
        data = source.data._replace(density_weights=density)
        drawn = source._replace(data=data)
        return objectives.make_outer_batch(jax.random.key(5), drawn, config, 0.02).weights

    plain = weights(None)
    np.testing.assert_array_equal(weights(jnp.ones(small.L)), plain)
    np.testing.assert_allclose(weights(jnp.full(small.L, 2.0)), 2 * plain)


def test_weights_can_be_clipped_and_normalized():
    q = jnp.array([-50.0, 10.0, 40.0])

    def weights(**changes):
        config = small.CONFIG.model_copy(update=changes)
        return np.asarray(objectives.outer_weights(q, config, 0.1))

    np.testing.assert_allclose(weights(), [-5.0, 1.0, 4.0])
    np.testing.assert_allclose(weights(weight_clip_min=0.0), [0.0, 1.0, 4.0])
    np.testing.assert_allclose(weights(weight_clip_min=0.0, weight_norm="mean"), [0.0, 0.6, 2.4])
    np.testing.assert_allclose(weights(weight_clip_min=0.0, objective="pbc_scaled"), [5 / 3] * 3)
    np.testing.assert_allclose(weights(objective="pbc"), [1.0] * 3)


@pytest.mark.parametrize(
    ("q", "expected"),
    [
        ([1.0, 3.0, -1.0], [1.0, 3.0, -1.0]),
        ([-1.0, -2.0, -3.0], [-0.5, -1.0, -1.5]),
        ([1.0, -1.0, 0.0], [150.0, -150.0, 0.0]),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
    ],
)
def test_normalized_weights_keep_their_order_and_stay_finite(q, expected):
    """Divided by a mean below 0 the worst actions would weigh most, and by one near 0 all."""
    config = small.CONFIG.model_copy(update={"weight_norm": "mean"})
    got = objectives.outer_weights(jnp.array(q), config, 0.1)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
