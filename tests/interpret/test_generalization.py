"""Bounds and capacity measures: known answers, and what they may not do."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.interpret import trees
from jaxmethods.interpret.curvature import hutchinson, operators
from jaxmethods.interpret.expressivity import in_context
from jaxmethods.interpret.generalization import (
    distribution_shift,
    evaluated_cmi,
    kl_bounds,
    leave_one_out,
    norms,
    pac_bayes,
    rademacher,
    stability,
)
from jaxmethods.interpret.kernels import kernel_statistics
from jaxmethods.interpret.losses import cross_entropy, squared_error
from jaxmethods.interpret.problem import Data, make_problem
from tests.interpret.networks import random_layers, relu_mlp
from tests.interpret.training import clusters, mlp_learner


@jax.jit
def _bounds(q, c, kl, n):
    return (
        kl_bounds.kl_inverse(q, c),
        kl_bounds.maurer(q, kl, n, 0.05),
        kl_bounds.mcallester(q, kl, n, 0.05),
    )


def test_inverse_relative_entropy_is_monotone_and_at_least_the_mean():
    q = np.linspace(0, 1, 9, dtype=np.float32)[:, None]
    c = np.array([0, 1e-6, 1e-3, 0.1, 1.0, 20.0], np.float32)
    inverse, maurer, mcallester = _bounds(q, c, 100 * c, np.float32(1000))
    assert np.all(np.diff(inverse, axis=0) >= -1e-6)
    assert np.all(np.diff(inverse, axis=1) >= -1e-6)
    assert np.all(inverse >= q)
    assert np.all(inverse <= 1)
    np.testing.assert_allclose(inverse[0], -np.expm1(-c), rtol=1e-5)
    np.testing.assert_allclose(inverse[:, 0], q[:, 0], atol=1e-6)
    assert np.all(maurer <= mcallester + 1e-6)
    _, fewer, _ = _bounds(q, c, 100 * c, np.float32(100))
    assert np.all(fewer >= maurer - 1e-6)


def test_relative_entropy_of_equal_gaussians_is_zero():
    m, s = jnp.arange(3.0), jnp.ones(3) / 3
    assert kl_bounds.gaussian_kl(m, s, m, s) == 0
    assert kl_bounds.gaussian_kl(m, s, m, 2 * s) > 0
    assert kl_bounds.gaussian_kl(m, s, m + 0.1, s) > 0


SIZES = (3, 6, 2)


@jax.jit
def _measures(params, x, y):
    problem = make_problem(relu_mlp, cross_entropy, params, (x, y))
    trace = hutchinson.trace(operators.hessian(problem), jax.random.key(0), 8).value
    logits = relu_mlp(params, x)
    return {
        "trace": trace,
        "path norm": norms.path_norm(relu_mlp, params, x[:1]),
        "margins": norms.margins(logits, y),
    }


def test_rescaled_relu_layers_change_sharpness_but_neither_path_norm_nor_margins():
    params = random_layers(jax.random.key(0), SIZES)
    x, y = clusters(0, 12, 3)
    (w0, b0), (w1, b1) = params
    scaled = [(10 * w0, 10 * b0), (w1 / 10, b1)]
    one, other = _measures(params, x, y), _measures(scaled, x, y)
    np.testing.assert_allclose(one["path norm"], other["path norm"], rtol=1e-5)
    np.testing.assert_allclose(one["margins"], other["margins"], atol=1e-5)
    assert abs(other["trace"]) > 3 * abs(one["trace"])


def test_networks_that_are_not_homogeneous_have_no_path_norm():
    params, (x, _) = random_layers(jax.random.key(0), SIZES), clusters(0, 4, 3)
    norms.check_homogeneous(relu_mlp, params, x)
    with pytest.raises(ValueError, match="expected a ReLU network"):
        norms.check_homogeneous(lambda p, x: jnp.tanh(relu_mlp(p, x)), params, x)


def test_spectral_norm_of_a_map_is_that_of_its_matrix():
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)
    found = norms.map_spectral_norm(lambda x: matrix @ x, jnp.zeros(6), jax.random.key(0))
    np.testing.assert_allclose(found, np.linalg.norm(matrix, 2), rtol=1e-4)


def _linear(params, x):
    return x @ params


@jax.jit
def _network_leave_one_out(w, x, y):
    problem = make_problem(_linear, squared_error, w, (x, y))
    return leave_one_out.network_leave_one_out(problem, 0.3 / len(x), 4)


def test_approximate_leave_one_out_is_exact_for_ridge_regression():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(10, 3)).astype(np.float32), rng.normal(size=10).astype(np.float32)
    exact = leave_one_out.ridge_leave_one_out(x, y, 0.3)
    found = _network_leave_one_out(exact.weights[:, None], x, y[:, None])
    np.testing.assert_allclose(y - found[:, 0], exact.loo_residuals, rtol=1e-4, atol=1e-5)


def test_network_rademacher_is_below_the_bound_of_its_class():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(20, 3)), jnp.float32)

    def train(key, signs):
        del key
        w = signs @ x
        return x @ (0.1 * w / jnp.linalg.norm(w))

    found = jax.jit(lambda key: rademacher.trained_correlation(train, key, 20, 64))
    value = found(jax.random.key(0))
    assert value.value <= rademacher.linear_bound(x, 0.1)
    exact = rademacher.linear_rademacher(x, 0.1, jax.random.key(1), 512)
    assert abs(value.value - exact.value) < 3 * (value.error + exact.error)
    pixels = jnp.asarray(np.random.default_rng(0).integers(0, 256, (20, 3)), jnp.uint8)
    found = rademacher.linear_rademacher(pixels, 0.1, jax.random.key(1), 512)
    assert found.value <= rademacher.linear_bound(pixels, 0.1)


@jax.jit
def _retrained(x, y, held_x, held_y, key):
    train = mlp_learner(x, y, 4, 30)
    losses = lambda params: cross_entropy.value(relu_mlp(params, held_x), held_y)  # noqa: E731
    return stability.retrained_stability(train, losses, key, len(x), jnp.arange(6))


@pytest.mark.slow
def test_deleting_an_example_changes_less_when_there_are_more():
    held = clusters(9, 16, 3)
    few = _retrained(*clusters(1, 8, 3), *held, jax.random.key(0))
    many = _retrained(*clusters(1, 64, 3), *held, jax.random.key(0))
    assert 0 < many.hypothesis < few.hypothesis
    assert many.hypothesis <= many.uniform


def test_evaluated_information_bounds_the_gap_and_is_zero_without_memory():
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, 2, (64, 10))
    by_chance = rng.random((64, 10, 2)) < 0.4
    found = evaluated_cmi.evaluated_cmi(by_chance, jnp.asarray(chosen))
    assert np.all(found.information < 0.12)
    # A learner that is right exactly where it has seen the example: one bit, gap one half.
    rest = rng.random((64, 10)) < 0.5
    wrong = np.stack([np.where(chosen == i, 0, rest) for i in (0, 1)], axis=2)
    found = evaluated_cmi.evaluated_cmi(wrong, jnp.asarray(chosen))
    assert found.gap <= found.bound
    assert abs(found.gap - 0.5) < 0.1
    with pytest.raises(ValueError, match="wrong: expected"):
        evaluated_cmi.evaluated_cmi(wrong[:1], jnp.asarray(chosen))


def test_shifted_features_are_told_apart_and_their_weights_carry_a_mean_over():
    rng = np.random.default_rng(0)
    source, same = rng.normal(size=(2, 400, 2)).astype(np.float32)
    target = rng.normal(size=(400, 2)).astype(np.float32)
    target[:, 0] += 0.7
    near = distribution_shift.distribution_shift(source, same, jax.random.key(0))
    far = distribution_shift.distribution_shift(source, target, jax.random.key(0))
    assert abs(near.distance.value) < 3 * near.distance.error
    assert far.distance.value > 5 * far.distance.error
    assert near.effective_size > 350 > far.effective_size
    carried = distribution_shift.weighted_risk(source[:, 0], far.weights)
    assert abs(carried.value - 0.7) < 3 * carried.error
    assert carried.samples == far.effective_size


@jax.jit
def _certify(params, initial, x, y, key):
    problem = make_problem(relu_mlp, cross_entropy, params, Data(x, y))
    prior = pac_bayes.Prior(trees.floats(initial), jnp.zeros(len(y), bool))
    start = pac_bayes.initial_posterior(params)
    own, objectives = pac_bayes.optimize(start, problem, prior, key, 300, 1e-2)
    return objectives, pac_bayes.certificate(own, problem, prior, key, 200), own


def test_a_prior_that_has_seen_everything_is_refused():
    params = random_layers(jax.random.key(0), SIZES)
    with pytest.raises(ValueError, match="got 5 of 5 used"):
        pac_bayes.prior_of_other_examples(params, np.ones(5, bool))
    prior = pac_bayes.prior_of_other_examples(params, np.arange(5) < 2)
    x, y = clusters(0, 6, 3)
    problem = make_problem(relu_mlp, cross_entropy, params, Data(x, y))
    posterior = pac_bayes.initial_posterior(params)
    with pytest.raises(ValueError, match="prior: expected one of 6 examples"):
        pac_bayes.certificate(posterior, problem, prior, jax.random.key(0))
    unlabeled = replace(problem, data=Data(x, y.at[3].set(-1)))
    fresh = prior._replace(used=jnp.arange(6) < 2)
    found = pac_bayes.certificate(posterior, unlabeled, fresh, jax.random.key(0), 2)
    assert found.examples == 3
    weighted = replace(problem, data=problem.data._replace(weight=jnp.ones(6)))
    with pytest.raises(ValueError, match="without weights"):
        pac_bayes.certificate(posterior, weighted, prior, jax.random.key(0))


CENTERS = np.random.default_rng(0).normal(size=(2, 4))


def drawn(key, examples):
    """Two Gaussian classes that overlap."""
    label, noise = jax.random.split(key)
    y = jax.random.randint(label, (examples,), 0, 2)
    return Data(
        jnp.asarray(1.5 * CENTERS, jnp.float32)[y] + jax.random.normal(noise, (examples, 4)), y
    )


@jax.jit
def _runs(keys):
    def run(key):
        keys = [jax.random.fold_in(key, i) for i in range(5)]
        own = drawn(keys[0], 600)
        params = mlp_learner(own.inputs, own.targets, 8, 200)(keys[1], jnp.ones(600))
        initial = random_layers(keys[1], (4, 8, 2))
        _, found, posterior = _certify(params, initial, own.inputs, own.targets, keys[2])
        problem = make_problem(relu_mlp, cross_entropy, params, own)
        risk = pac_bayes.held_out_risk(posterior, problem, drawn(keys[3], 4000), keys[4])
        return found.bound, risk

    return jax.lax.map(run, keys, batch_size=5)


@pytest.mark.slow
def test_certificates_dominate_the_risk_in_97_of_100_runs():
    bounds, risks = _runs(jax.random.split(jax.random.key(0), 100))
    assert np.mean(bounds >= risks) >= 0.97
    assert np.mean(bounds) < 0.5
    assert np.mean(bounds - risks) > 0.01


@pytest.mark.slow
def test_random_labels_have_no_certificate():
    x = drawn(jax.random.key(0), 200).inputs
    y = jnp.asarray(np.random.default_rng(0).integers(0, 2, 200))
    key = jax.random.key(1)
    params = jax.jit(mlp_learner(x, y, 32, 3000))(key, jnp.ones(200))
    assert np.mean(np.argmax(relu_mlp(params, x), axis=1) == y) > 0.7  # it does memorize
    _, found, _ = _certify(params, random_layers(key, (4, 32, 2)), x, y, jax.random.key(2))
    assert found.bound >= 0.45


@jax.jit
def _digits(x, y, half, key):
    """Certificates of one hidden layer of 64 on even and odd digits, by two priors."""
    initial = random_layers(key, (64, 64, 2))
    whole = mlp_learner(x, y, 64, 100, 0.3)(key, jnp.ones(len(y)))
    first = mlp_learner(x, y, 64, 600, 0.3)(key, half.astype(jnp.float32))
    found = []
    for params, center, used, width in (
        (whole, initial, 0 * half, -3.5),
        (first, first, half, -7.0),
    ):
        problem = make_problem(relu_mlp, cross_entropy, params, Data(x, y))
        prior = pac_bayes.Prior(trees.floats(center), used.astype(bool))
        start = pac_bayes.initial_posterior(params, width)
        own, _ = pac_bayes.optimize(start, problem, prior, key, 800, 1e-2)
        found.append((pac_bayes.certificate(own, problem, prior, key, 1000), own))
    return found


@pytest.mark.slow
def test_digits_have_certificates_that_say_something():
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = jnp.asarray(digits.data / 16, jnp.float32), jnp.asarray(digits.target % 2)
    half = jnp.arange(1200) % 2 == 0
    found = _digits(x[:1200], y[:1200], half, jax.random.key(0))
    params = random_layers(jax.random.key(0), (64, 64, 2))
    problem = make_problem(relu_mlp, cross_entropy, params, Data(x[:1200], y[:1200]))
    held = Data(x[1200:], y[1200:])
    for (certificate, posterior), most in zip(found, (0.5, 0.25), strict=True):
        assert certificate.bound < most
        risk = pac_bayes.held_out_risk(posterior, problem, held, jax.random.key(1))
        assert risk <= certificate.bound
    assert found[1][0].examples == 600


def test_a_divergence_that_is_nan_bounds_nothing():
    assert jnp.isnan(kl_bounds.maurer(jnp.float32(0.1), jnp.float32(jnp.nan), 100, 0.05))


def test_norms_of_half_precision_are_those_of_the_numbers():
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.bfloat16)
    own, exact = norms.norms([matrix]), norms.norms([matrix.astype(jnp.float32)])
    np.testing.assert_array_equal(own.spectral, exact.spectral)
    logits = jnp.full((4, 3), 300, jnp.float16).at[0, 1].set(0)
    own, exact = (
        norms.fisher_rao(x, jnp.arange(4) % 3, 10) for x in (logits, logits.astype(float))
    )
    np.testing.assert_allclose(own, exact, rtol=1e-6)


@pytest.mark.parametrize(
    "measure",
    [
        lambda x, y: kernel_statistics.alignment(x @ x.T, y[:, None] @ y[None]),
        lambda x, y: kernel_statistics.label_alignment(x @ x.T, y > 0),
        lambda x, y: kernel_statistics.drift(x @ x.T, y[:, None] @ y[None]),
        lambda x, y: leave_one_out.ridge_leave_one_out(x, y, 0.5).mean_square,
        lambda x, y: leave_one_out.kernel_leave_one_out(jnp.eye(len(y), dtype=y.dtype), y, 0.5),
        lambda x, y: rademacher.linear_bound(x, 1.0),
        lambda x, y: in_context.ridge(x, y, 0.5),
        lambda x, y: in_context.in_context_descent(x, y, x[0], 0.01, 2),
        lambda x, y: (
            in_context.probe(
                lambda a, b, c: a[0] @ c, x[None], y[None], x[:1], rate=0.01
            ).squared_distance
        ),
        lambda x, y: operators.dense(x.T @ x)(y[:3]),
        lambda x, y: distribution_shift.distribution_shift(x, x + 9, jax.random.key(0)).distance,
    ],
)
def test_half_precision_is_computed_in_float32(measure):
    """Whole numbers, which float16 holds, but not the sums of their squares."""
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.integers(-8, 8, (40, 3))), jnp.asarray(rng.integers(-16, 16, 40))
    own, wide = (measure(x.astype(kind), y.astype(kind)) for kind in (jnp.float16, jnp.float32))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), own, wide)


def test_samples_of_float32_are_compared_where_float64_is_there():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(20, 2)), jnp.float32)
    with jax.enable_x64(True):
        found = distribution_shift.distribution_shift(x, x + 9, jax.random.key(0))
    assert found.distance.value == 2


def test_scales_that_hardly_differ_have_their_divergence():
    center = jnp.zeros(1000)
    for apart in (1e-1, 1e-3, 1e-4):
        own = pac_bayes.Posterior(center, jnp.full(1000, apart / 2), jnp.float32(0))
        found = pac_bayes.divergence(own, center, own.log_variance)
        np.testing.assert_allclose(found, 500 * (np.expm1(apart) - apart), rtol=2e-3)
