"""Named protocols, their controls, and how sure they are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.errors import DataError
from jaxmethods.numerics import linear_probe
from jaxmethods.rsfm.evaluation import baselines, bootstrap
from jaxmethods.rsfm.evaluation.protocols import PRESETS, Split, judge, penalties
from tests.rsfm.small import draw, uniform

CLASSES = 4


def split(seed, number, told_apart=1.5):
    labels = jnp.arange(number) % CLASSES
    centers = told_apart * draw(99, CLASSES, 8)
    return Split(draw(seed, number, 8) + centers[labels], labels)


@pytest.fixture(scope="module")
def splits():
    return split(0, 120), split(1, 40), split(2, 80)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scale_mae", "torchgeo_bench"])
def test_classes_are_told_apart(splits, name):
    found = judge(name, *splits, classes=CLASSES)
    truth = splits[2].labels
    for said in (found.probe, found.neighbors):
        assert np.mean(said == truth) > 0.9


@pytest.mark.slow
def test_with_permuted_labels_ten_classes_are_told_apart_one_time_in_ten():
    """However well features tell them apart; 1000 test images, whose deviation is 1 %."""
    rng = np.random.default_rng(0)
    labels = [np.arange(number) % 10 for number in (1600, 400, 1000)]
    centers = 2 * draw(99, 10, 8)
    own = [Split(draw(5, len(one), 8) + centers[one], jnp.asarray(one)) for one in labels]
    cheat = [one._replace(labels=rng.permutation(one.labels)) for one in own[:2]]
    found = judge("scale_mae", *cheat, own[2], classes=10)
    for said in (found.probe, found.neighbors):
        assert 100 * np.mean(said == labels[2]) == pytest.approx(10, abs=3)


def test_five_values_of_c_have_exactly_the_accuracies_of_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model")
    preset = PRESETS["torchgeo_bench"]
    assert not preset.standardize
    chosen = slice(8, 33, 6)  # C from 0.01 to 10^4 is where accuracies differ
    inverse = np.array(preset.inverse)[chosen]
    number, width = 400, 24
    labels = jnp.arange(number) % CLASSES
    centers = 0.4 * draw(98, CLASSES, width)
    train, test = (draw(seed, number, width) + centers[labels] for seed in (7, 8))
    lams = jnp.asarray(penalties(preset, number)[chosen])
    own = linear_probe.probe_lbfgs(train, labels, lams, classes=CLASSES, most_steps=400)
    right = linear_probe.accuracies(own, test, labels)
    assert len(set(right.tolist())) > 2
    for place, c in enumerate(inverse):
        model = linear.LogisticRegression(C=c, tol=1e-9, max_iter=5000)
        model.fit(np.asarray(train, float), labels)
        theirs = model.predict(np.asarray(test, float))
        assert float(right[place]) == np.float32(np.mean(theirs == labels)), c


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mae", "pangaea"])
def test_the_other_presets(splits, name):
    found = judge(name, *splits, classes=CLASSES)
    assert np.mean(found.probe == splits[2].labels) > 0.9
    assert found.k == min(PRESETS[name].k, 160)


def test_scikit_learns_c_is_a_penalty():
    own = penalties(PRESETS["torchgeo_bench"], 100)
    assert len(own) == 40
    np.testing.assert_allclose(own[[0, -1]], [1 / (1e-6 * 100), 1 / (1e4 * 100)], rtol=1e-6)


def test_a_class_without_an_image_is_named(splits):
    train = Split(splits[0].features, jnp.minimum(splits[0].labels, 2))
    with pytest.raises(DataError, match="got none of 3"):
        judge("scale_mae", train, *splits[1:], classes=CLASSES)


def test_intervals_hold_the_mean_and_shrink_as_images_come():
    key = jax.random.key(0)
    few, many = (bootstrap.interval(key, uniform(0, number)) for number in (20, 2000))
    assert few.low < few.mean < few.high
    assert many.high - many.low < (few.high - few.low) / 5
    assert many.low < 0.5 < many.high


def test_what_is_hard_for_both_cancels_in_a_difference():
    hard = uniform(0, 300) < 0.5
    better = hard | (uniform(1, 300) < 0.1)
    found = bootstrap.paired_difference(jax.random.key(0), better, hard, 500)
    assert found.excludes_zero
    same = bootstrap.paired_difference(jax.random.key(0), hard, hard, 100)
    assert same == (0, 0, 0)
    with pytest.raises(ValueError, match="second: expected"):
        bootstrap.paired_difference(jax.random.key(0), hard, hard[:5])


def test_pixel_statistics_in_words():
    images = jnp.stack([jnp.zeros((4, 4, 1)), jnp.ones((4, 4, 1))])
    own = baselines.imagestats(images, bins=2)
    np.testing.assert_array_equal(own, [[0, 0, 1, 0], [1, 0, 0, 1]])
    assert baselines.imagestats(uniform(0, 2, 8, 8, 3)).shape == (2, 54)


def test_random_convolutions_do_not_see_brightness_and_have_two_numbers_a_filter():
    images = draw(0, 3, 16, 16, 2)
    draw_filters = jax.jit(baselines.random_filters, static_argnums=2)
    filters = draw_filters(jax.random.key(0), images, 5)
    np.testing.assert_allclose(jnp.linalg.norm(filters, axis=1), 1, rtol=1e-4)
    respond = jax.jit(baselines.random_convolutions)
    own = respond(filters, images)
    assert own.shape == (3, 10)
    brighter = respond(filters, images + 3)
    np.testing.assert_allclose(own, brighter, atol=1e-4)
