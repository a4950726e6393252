"""Votes of nearest neighbors."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.rsfm.evaluation.neighbors import neighbor_scores
from tests.rsfm.small import draw

FEATURES, LABELS, QUERIES = draw(0, 30, 5), jnp.arange(30) % 4, draw(1, 11, 5)


def scores(**settings):
    return neighbor_scores(FEATURES, LABELS, QUERIES, classes=4, **settings)


def test_an_image_is_its_own_nearest_neighbor():
    own = neighbor_scores(FEATURES, LABELS, FEATURES, classes=4, k=1)
    np.testing.assert_array_equal(jnp.argmax(own, 1), LABELS)


def test_at_a_high_temperature_every_neighbor_has_one_vote():
    np.testing.assert_allclose(scores(k=7, temperature=1e6), scores(k=7, weighted=False), rtol=1e-5)


def test_chunks_change_nothing():
    np.testing.assert_allclose(scores(k=5, chunk=4), scores(k=5), rtol=1e-6)


def test_distances_are_those_of_numpy_wherever_the_features_are():
    distance = np.linalg.norm(np.asarray(QUERIES)[:, None] - np.asarray(FEATURES), axis=-1)
    near = np.asarray(LABELS)[np.argsort(distance, axis=1)[:, :5]]
    expected = (near[..., None] == np.arange(4)).sum(1)
    settings = {"classes": 4, "k": 5, "metric": "l2", "weighted": False}
    own = neighbor_scores(FEATURES + 1000, LABELS, QUERIES + 1000, **settings)
    np.testing.assert_array_equal(own, expected)


def test_more_neighbors_than_images_are_refused():
    with pytest.raises(ValueError, match="k: expected 1 to the 30 training images, got 31"):
        scores(k=31)


def test_broken_training_images_are_nobodys_neighbors_and_half_precision_is_float32s():
    features, labels = draw(0, 8, 4), jnp.arange(8) % 3
    settings = {"classes": 3, "k": 3}
    broken = jnp.concatenate([features, jnp.full((1, 4), jnp.nan)])
    own = neighbor_scores(broken, jnp.append(labels, 0), features, **settings)
    plain = neighbor_scores(features, labels, features, **settings)
    np.testing.assert_allclose(own, plain, rtol=1e-5)
    half = neighbor_scores(
        features.astype(jnp.float16), labels, features.astype(jnp.float16), **settings
    )
    assert np.isfinite(half).all()
    np.testing.assert_array_equal(half.argmax(1), plain.argmax(1))


def test_a_query_that_is_not_finite_is_near_to_nothing():
    queries = QUERIES.at[0, 0].set(jnp.nan)
    own = neighbor_scores(FEATURES, LABELS, queries, classes=4, k=5)
    assert np.isnan(own[0]).all()
    np.testing.assert_allclose(own[1:], scores(k=5)[1:], rtol=1e-6)


def test_a_query_without_any_finite_training_image_is_near_to_nothing():
    broken = jnp.full_like(FEATURES, jnp.nan)
    for weighted in (True, False):
        own = neighbor_scores(broken, LABELS, QUERIES, classes=4, k=5, weighted=weighted)
        assert np.isnan(own).all()


def test_a_low_temperature_is_the_nearest_image_and_no_infinity():
    own = scores(k=5, temperature=1e-3)
    assert np.isfinite(own).all()
    np.testing.assert_array_equal(own.argmax(1), scores(k=1).argmax(1))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_a_broken_training_image_has_no_vote_though_as_many_vote_as_there_are(metric):
    broken = jnp.concatenate([FEATURES[:3], jnp.full((1, 5), jnp.nan)])
    settings = {"classes": 4, "metric": metric, "weighted": False}
    own = neighbor_scores(broken, jnp.arange(4), QUERIES, k=4, **settings)
    np.testing.assert_array_equal(own, np.broadcast_to([1, 1, 1, 0], own.shape))


def test_training_images_without_a_label_are_nobodys_neighbors():
    features = jnp.concatenate([QUERIES, FEATURES])  # the nearest of all
    labels = jnp.append(jnp.full(len(QUERIES), -1), LABELS)
    own = neighbor_scores(features, labels, QUERIES, classes=4, k=5)
    np.testing.assert_allclose(own, scores(k=5), rtol=1e-5)
