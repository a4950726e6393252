"""Sharpness, landscapes, noise, spectra of weights, scaling laws, the monitor."""

from __future__ import annotations

import inspect
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.interpret import trees
from jaxmethods.interpret.dynamics import (
    landscape,
    monitor,
    scaling_law,
    sharpness,
    weight_spectrum,
)
from jaxmethods.interpret.gradients import linear_layers, noise_scale, per_example
from jaxmethods.interpret.losses import cross_entropy, squared_error
from jaxmethods.interpret.problem import Data, make_problem, mean_gradient
from jaxmethods.models.products import rows_product
from tests.interpret.networks import classification
from tests.programs import once


def identity(params, x):
    """Outputs x + theta: the loss is |theta + x|^2 / 2, whose Hessian is 1."""
    return x + params


@once
def quadratic():
    return make_problem(identity, squared_error, jnp.array([3.0, 4.0]), (jnp.zeros((4, 2)),) * 2)


@jax.jit
def _sharpness(problem, key):
    return {
        "sam": sharpness.ascent_sharpness(problem, 0.1),
        "ascent": sharpness.ascent_sharpness(problem, 0.1, 5),
        "adaptive": sharpness.ascent_sharpness(problem, 0.1, adaptive=True),
        "flatness": sharpness.pac_bayes_flatness(problem, key, draws=512),
        "edge": sharpness.edge_of_stability(problem, key, 0.5, 2),
    }


def test_sharpness_of_a_quadratic():
    found = _sharpness(quadratic(), jax.random.key(0))
    np.testing.assert_allclose(found["sam"], 5 * 0.1 + 0.1**2 / 2, rtol=1e-4)
    np.testing.assert_allclose(found["ascent"], found["sam"], rtol=1e-4)
    assert found["adaptive"] > found["sam"]
    # E rise = sigma^2 P / 2 = 0.1, up to the draws' mean.
    rise = found["flatness"].rise
    np.testing.assert_allclose(rise.value, 0.1, rtol=1e-3)
    assert abs(found["flatness"].sigma ** 2 - 0.1) < 5 * rise.error
    np.testing.assert_allclose(found["edge"].value, 0.25, rtol=1e-5)


@jax.jit
def _noise(problem):
    return noise_scale.noise_scale(problem, chunk=3), per_example.stiffness(
        problem, problem.data.targets
    )


def test_noise_scale_is_the_covariance_of_gradients_and_ignores_padding():
    own = classification(0)
    gradients = trees.ravel(per_example.per_example_gradients(own, 5), 1)
    padded = replace(
        own,
        data=Data(
            jnp.concatenate([own.data.inputs, 9 + own.data.inputs[:8]]),
            jnp.concatenate([own.data.targets, own.data.targets[:8]]),
            (jnp.arange(32) < 24).astype(jnp.float32),
        ),
    )
    found, stiff = _noise(padded)
    sigma = np.trace(np.cov(gradients.T))
    np.testing.assert_allclose(found.trace_sigma, sigma, rtol=1e-4)
    unit = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    cosines = unit @ unit.T
    off = cosines[~np.eye(24, dtype=bool)]
    np.testing.assert_allclose(stiff["all"], off.mean(), atol=1e-5)
    assert stiff["within"] > stiff["between"]


def tokens(params, x):
    """A layer of rows that have tokens, one with one number for all of its outputs, one of all
    examples' tokens as rows, a tied one, and a table of as many rows as examples."""
    hidden = jax.jit(lambda x: jnp.tanh(x @ params["first"] + params["bias"]))(x)
    hidden = jnp.tanh(hidden @ params["second"] + params["common"])
    hidden = jnp.tanh(rows_product(hidden, params["third"]) + params["offset"])
    table = jnp.tanh(jnp.eye(6, 4) @ params["table"])
    return (hidden @ params["tied"]) @ params["tied"].T + jnp.sum(table)


@jax.jit
def _norms(problem):
    gradients = per_example.per_example_gradients(problem, 5)
    batch = problem.data
    found = linear_layers.linear_layers(
        lambda vector, batch: problem.losses(vector, batch), problem.floats, batch
    )
    return trees.ravel(gradients, 1), per_example.squared_norms(problem), found.rest


def test_norms_of_gradients_are_found_without_them():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    shapes = {"first": (4, 3), "bias": (3,), "table": (4, 2), "tied": (3, 3)}
    shapes |= {"second": (3, 3), "common": (1,), "third": (3, 3), "offset": (3,)}
    params = {name: draw(*shape) for name, shape in shapes.items()}
    data = (draw(6, 5, 4), jnp.asarray(rng.integers(0, 3, (6, 5))))
    problem = make_problem(tokens, cross_entropy, params, data)
    gradients, squares, rest = _norms(problem)
    np.testing.assert_allclose(squares, np.sum(gradients**2, axis=1), rtol=1e-5)
    layers = {"first", "bias", "second", "third", "offset"}
    assert {name for name, leaf in rest.items() if leaf is None} == layers
    parts = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), problem.data)
    batches = replace(problem, data=parts, microbatched=True)
    np.testing.assert_allclose(per_example.squared_norms(batches), squares, rtol=1e-5)


@jax.custom_vjp
def straight_through(x):
    """A sign whose derivative isn't its own."""
    return jnp.sign(x)


straight_through.defvjp(lambda x: (jnp.sign(x), x), lambda x, d: (d * (jnp.abs(x) < 1),))


@jax.jit
def in_float32(params):
    """Parameters that have that type already are handed on as they are."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)


def of_own_rules(params, x):
    """Layers behind functions that say themselves what their derivatives are."""
    params = in_float32(params)
    hidden = jax.nn.relu(x @ params["kink"]) + straight_through(x @ params["first"])
    return hidden @ params["last"]


def test_norms_of_gradients_know_derivatives_that_functions_bring_along():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    shapes = {"kink": (4, 3), "first": (4, 3), "last": (3, 2)}
    params = {name: draw(*shape) for name, shape in shapes.items()}
    # Every unit of "kink" is at 0 for some inputs, where ReLU's derivative is 0 by its own rule.
    params["kink"] = params["kink"].at[:2].set(0)
    x = draw(6, 4).at[:3, 2:].set(0)
    problem = make_problem(of_own_rules, cross_entropy, params, (x, jnp.arange(6) % 2))
    gradients, squares, rest = _norms(problem)
    np.testing.assert_allclose(squares, np.sum(gradients**2, axis=1), rtol=1e-5)
    assert not jax.tree.leaves(rest)


def test_two_batch_sizes_give_back_the_noise_they_have():
    trace, square = noise_scale.from_two_batches(2.0 + 8 / 4, 2.0 + 8 / 16, 4, 16)
    np.testing.assert_allclose([trace, square], [8, 2])
    with pytest.raises(ValueError, match="big: expected more than small"):
        noise_scale.from_two_batches(1.0, 1.0, 4, 4)


def test_a_gradient_lost_in_noise_has_no_scale():
    data = (jnp.zeros((4, 1)), jnp.array([[1.0], [-1], [1], [-1]]))
    problem = make_problem(identity, squared_error, jnp.zeros(1), data)
    found = noise_scale.noise_scale(problem)
    assert np.isnan(found.unbiased)


def test_the_barrier_between_two_minima_is_seen_and_a_convex_loss_has_none():
    x = jnp.ones((4, 1))

    def valley(params, x):
        return x * (params**2 - 1)

    problem = make_problem(valley, squared_error, jnp.array([1.0]), (x, 0 * x))
    found = landscape.barrier(problem, jnp.array([-1.0]), 5)
    np.testing.assert_allclose(found.height, 0.5, rtol=1e-5)
    convex = landscape.barrier(quadratic(), jnp.array([-1.0, 2.0]), 5)
    np.testing.assert_allclose(convex.height, 0, atol=1e-5)


def test_checkpoints_in_a_plane_are_explained_by_two_directions():
    plane = np.random.default_rng(0).normal(size=(2, 12)).astype(np.float32)
    weights = np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32)
    stack = {"a": (weights @ plane)[:, :5], "b": (weights @ plane)[:, 5:].reshape(6, 7)}
    directions, coordinates, shares = landscape.trajectory_plane(stack)
    np.testing.assert_allclose(np.sum(shares), 1, rtol=1e-4)
    back = [coordinates @ np.stack([d[name] for d in directions]) for name in ("a", "b")]
    for own, name in zip(back, ("a", "b"), strict=True):
        np.testing.assert_allclose(own, stack[name] - stack[name][-1], atol=1e-3)


def test_noise_has_no_spikes_and_a_planted_one_is_found():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(60, 30)).astype(np.float32)
    found = weight_spectrum.weight_spectrum(noise)
    assert found.spikes == 0
    assert abs(found.variance - 1) < 0.15
    u, v = rng.normal(size=60), rng.normal(size=30)
    spike = 25 * np.outer(u / np.linalg.norm(u), v / np.linalg.norm(v))
    planted = weight_spectrum.weight_spectrum((noise + spike).astype(np.float32))
    assert planted.spikes == 1
    with pytest.raises(ValueError, match="matrix: expected two sides"):
        weight_spectrum.weight_spectrum(noise[:3])


@jax.jit
def _laws(sizes, losses, keys):
    return jax.lax.map(lambda x: scaling_law.fit_scaling_law(sizes, *x, draws=100), (losses, keys))


def test_intervals_of_a_scaling_law_cover_its_exponent():
    sizes = jnp.logspace(3, 7, 12)
    truth = 1.5 + 60 * sizes**-0.35
    noise = 1 + 0.01 * np.random.default_rng(0).normal(size=(40, 12))
    found = _laws(
        sizes, jnp.asarray(truth * noise, jnp.float32), jax.random.split(jax.random.key(0), 40)
    )
    covered = np.mean((found.low.exponent <= 0.35) & (found.high.exponent >= 0.35))
    assert covered >= 0.8
    np.testing.assert_allclose(np.median(found.law.exponent), 0.35, atol=0.02)
    np.testing.assert_allclose(np.median(found.law.floor), 1.5, atol=0.05)
    with pytest.raises(ValueError, match="sizes: expected at least 4"):
        scaling_law.fit_scaling_law(sizes[:3], truth[:3], jax.random.key(0))


WATCH = monitor.train_monitor(every=5, iterations=2)


@jax.jit
def _watched(problem, key):
    def step(carry, _):
        vector, state = carry
        state = WATCH.update(state, problem.at(vector))
        vector = trees.axpy(-0.1, mean_gradient(problem, vector), vector)
        return (vector, state), state.row

    start = problem.floats, WATCH.init(key, problem)
    return jax.lax.scan(step, start, None, length=41)


def test_the_monitor_follows_training_at_its_cadence():
    (_, state), rows = _watched(quadratic(), jax.random.key(0))
    assert state.step == 41
    changes = np.flatnonzero(np.diff(rows.loss)) + 1
    np.testing.assert_array_equal(changes, np.arange(5, 41, 5))
    np.testing.assert_allclose(rows.sharpness[-1], 1, rtol=1e-5)
    np.testing.assert_allclose(rows.sharpness_residual[-1], 0, atol=1e-5)
    np.testing.assert_allclose(rows.weight_norm, np.sqrt(2 * rows.loss), rtol=1e-4)
    np.testing.assert_allclose(rows.distance[-1], 5 - rows.weight_norm[-1], rtol=1e-4)
    with pytest.raises(ValueError, match="every, iterations"):
        monitor.train_monitor(0)


def test_the_monitor_knows_padding_and_forgets_a_batch_that_is_no_number():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32).at[3].set(100)
    watch, row = monitor.train_monitor(1), []

    @jax.jit
    def updated(state, x, weight):
        data = Data(x, jnp.zeros((4, 2)), weight)
        return watch.update(state, make_problem(identity, squared_error, theta, data))

    theta = jnp.array([3.0, 4.0])
    state = watch.init(jax.random.key(0), quadratic())
    for own in (x, x.at[0].set(jnp.inf), x):
        state = updated(state, own, jnp.array([1.0, 1, 1, 0]))
        row.append(state.row.noise_scale)
    small, big = (np.sum(np.mean(x[:count] + theta, 0) ** 2) for count in (2, 3))
    sigma, signal = noise_scale.from_two_batches(small, big, 2, 3)
    np.testing.assert_allclose(row, sigma / signal, rtol=1e-4)
    np.testing.assert_allclose(trees.norm(state.direction), 1, rtol=1e-5)
    # Nothing is known of noise where no example is in one half alone.
    alone = updated(watch.init(jax.random.key(0), quadratic()), x, jnp.array([1.0, 1, 0, 0]))
    assert np.isnan(alone.row.noise_scale)


def test_the_monitor_costs_less_than_five_percent_of_the_steps_between_its_rows():
    problem = classification(0, 64, (16, 32, 32, 4))
    every = inspect.signature(monitor.train_monitor).parameters["every"].default
    watch = monitor.train_monitor(1)

    def row(problem, state):
        return watch.update(state, problem)

    def step(problem, vector):
        return trees.axpy(-0.1, mean_gradient(problem, vector), vector)

    def operations(function, *args):
        return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]

    state = jax.jit(watch.init)(jax.random.key(0), problem)
    extra = operations(row, problem, state) / operations(step, problem, problem.floats)
    assert extra / every < 0.05
    assert extra > 2  # it does compute something


def test_sizes_of_a_host_may_have_more_than_32_bits():
    sizes = np.array([10**9, 3 * 10**9, 10**10, 3 * 10**10, 10**11])
    losses = 1.5 + 400 * sizes.astype(float) ** -0.3
    law = scaling_law.fit_scaling_law(sizes, losses, jax.random.key(0), draws=2).law
    np.testing.assert_allclose(law.exponent, 0.3, rtol=0.02)
    for unit in (2.0**-40, 2.0**40):  # sums of squares, say, in place of means
        other = scaling_law.fit_scaling_law(sizes, unit * losses, jax.random.key(0), draws=2).law
        expected = [unit * law.floor, unit * law.factor, law.exponent]
        np.testing.assert_allclose(other, expected, rtol=1e-6)
