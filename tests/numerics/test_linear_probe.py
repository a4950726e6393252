"""Linear probes: the optimum of scikit-learn, entries of a grid as if they were alone."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmethods.numerics import cka, linear_probe
from tests.rsfm.small import draw

N, D, CLASSES = 60, 6, 3
LAMS = jnp.array([0.3, 0.03, 0.003])


@pytest.fixture(scope="module")
def data():
    labels = jnp.arange(N) % CLASSES
    return draw(0, N, D) + 0.8 * draw(1, CLASSES, D)[labels], labels


@pytest.fixture(scope="module")
def solved(data):
    """Three of 27 penalties in no order: three groups, each begins where the last one ended."""
    places = jnp.array([3, 20, 25])
    lams = jnp.logspace(-3, 1, 27)[jnp.arange(27) * 5 % 27].at[places].set(LAMS)
    many = linear_probe.probe_lbfgs(*data, lams, classes=CLASSES, tolerance=1e-6)
    return jax.tree.map(lambda leaf: leaf[places], many)


def test_the_optimum_is_scikit_learns(data, solved):
    linear = pytest.importorskip("sklearn.linear_model")
    features, labels = (np.asarray(own, float) for own in data)
    for place, lam in enumerate(np.asarray(LAMS)):
        reference = linear.LogisticRegression(C=1 / (lam * N), tol=1e-10, max_iter=5000)
        reference.fit(features, labels)
        scores = features @ reference.coef_.T + reference.intercept_
        scores -= scores.max(1, keepdims=True)
        log = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        own = -log[np.arange(N), labels.astype(int)].mean() + lam / 2 * (reference.coef_**2).sum()
        assert float(solved.objective[place]) == pytest.approx(own, abs=1e-6)
        right = reference.score(features, labels)
        assert float(linear_probe.accuracies(solved, *data)[place]) == pytest.approx(
            right, abs=1e-6
        )


def test_an_entry_of_the_grid_is_what_it_is_alone(data, solved):
    alone = linear_probe.probe_lbfgs(*data, LAMS[1:2], classes=CLASSES, tolerance=1e-6)
    np.testing.assert_allclose(alone.weight[0], solved.weight[1], atol=1e-4)
    np.testing.assert_allclose(alone.objective[0], solved.objective[1], atol=1e-6)


def test_rows_without_a_label_change_nothing(data, solved):
    features, labels = data
    more = jnp.concatenate([features, jnp.full((3, D), 50.0), jnp.full((1, D), jnp.nan)])
    labels = jnp.append(labels, jnp.array([-1, -1, CLASSES, -1]))
    own = linear_probe.probe_lbfgs(more, labels, LAMS[1:2], classes=CLASSES, tolerance=1e-6)
    np.testing.assert_allclose(own.weight[0], solved.weight[1], atol=1e-4)
    np.testing.assert_allclose(own.objective[0], solved.objective[1], atol=1e-6)
    known = linear_probe.accuracies(own, features, data[1])
    np.testing.assert_array_equal(linear_probe.accuracies(own, more, labels), known)


def test_the_gradient_is_small_and_a_larger_penalty_gives_smaller_weights(solved):
    assert np.all(solved.gradient < 1e-4)
    sizes = np.linalg.norm(np.asarray(solved.weight).reshape(len(LAMS), -1), axis=1)
    assert np.all(np.diff(sizes) > 0)
    np.testing.assert_allclose(np.sum(solved.bias, axis=1), 0, atol=1e-5)


def test_value_and_gradient_are_those_of_the_features(data):
    """Of a search that has not ended, in the features' own coordinates."""
    features, labels = data[0] + 2, data[1]
    found = linear_probe.probe_lbfgs(features, labels, LAMS, classes=CLASSES, most_steps=1)

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1))
    def objective(weight, bias):
        losses = optax.softmax_cross_entropy_with_integer_labels(features @ weight + bias, labels)
        return jnp.mean(losses) + LAMS[1] / 2 * jnp.sum(jnp.square(weight))

    value, slopes = objective(found.weight[1], found.bias[1])
    size = max(float(jnp.max(jnp.abs(slope))) for slope in slopes)
    assert size > 1e-3
    np.testing.assert_allclose(found.objective[1], value, rtol=1e-5)
    np.testing.assert_allclose(found.gradient[1], size, rtol=1e-3, atol=1e-6)


def test_fewer_images_than_features_have_scikit_learns_optimum():
    linear = pytest.importorskip("sklearn.linear_model")
    features, labels = draw(7, 12, 20), jnp.arange(12) % CLASSES
    found = linear_probe.probe_lbfgs(features, labels, LAMS[:1], classes=CLASSES)
    reference = linear.LogisticRegression(C=1 / (float(LAMS[0]) * 12), tol=1e-10, max_iter=5000)
    reference.fit(np.asarray(features, float), labels)
    np.testing.assert_allclose(found.weight[0].T, reference.coef_, atol=1e-5)


def test_standardized_features_have_mean_0_and_deviation_1():
    features = 3 + 5 * draw(0, 40, 4)
    own = linear_probe.standardizer(features)(features)
    np.testing.assert_allclose(jnp.mean(own, 0), 0, atol=1e-5)
    np.testing.assert_allclose(jnp.std(own, 0), 1, rtol=1e-5)


@pytest.mark.slow
def test_more_features_than_images_are_told_apart():
    """Also where the start of the search is a product with many zeros."""
    features = draw(5, 540, 768)
    found = linear_probe.probe_lbfgs(
        features, jnp.arange(540) % 10, jnp.array([1e-2]), classes=10, most_steps=3
    )
    assert found.steps[0] > 0
    assert float(found.objective[0]) < np.log(10)


def test_a_classifier_that_diverged_is_never_right(solved):
    lost = solved._replace(weight=solved.weight.at[1].set(jnp.nan))
    found = linear_probe.accuracies(lost, draw(0, 4, D), jnp.zeros(4, int))
    assert found[1] == 0


def test_features_kept_in_half_precision_do_not_overflow():
    features = (1000 * draw(0, 20, 2)).astype(jnp.float16)
    scaling = linear_probe.standardizer(features)
    np.testing.assert_allclose(jnp.std(scaling(features), axis=0), 1, rtol=1e-3)
    assert cka.linear_cka(features, features) == pytest.approx(1, rel=1e-5)
