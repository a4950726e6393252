"""Images found by images and by texts."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.rsfm.evaluation.measures import retrieval
from tests.rsfm.small import draw

NOWHERE = np.iinfo(np.int32).max
LABELS, GALLERY = np.array([0, 1, 2, 0, 1]), np.array([0, 0, 1, 1, 3, 0, 1])


@pytest.fixture(scope="module")
def ranked():
    return retrieval.rank(draw(0, 5, 4), LABELS, draw(1, 7, 4), GALLERY, chunk=2)


def test_ranks_and_precisions_are_those_of_the_definition(ranked):
    queries, gallery = (np.array(own) for own in (draw(0, 5, 4), draw(1, 7, 4)))
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    for place, (query, label) in enumerate(zip(queries, LABELS, strict=True)):
        hits = GALLERY[np.argsort(-(gallery @ query))] == label
        assert int(ranked.first[place]) == (np.argmax(hits) if hits.any() else NOWHERE)
        precisions = np.cumsum(hits) / np.arange(1, 8)
        expected = precisions[hits].mean() if hits.any() else 0
        assert float(ranked.precision[place]) == pytest.approx(expected, rel=1e-5)


def test_equals_count_in_favor_of_a_match():
    same = jnp.ones((1, 3))
    own = retrieval.rank(same, np.array([1]), jnp.ones((4, 3)), np.array([0, 0, 1, 0]))
    assert (int(own.first[0]), float(own.precision[0])) == (0, 1.0)


def test_what_has_no_match_is_in_no_gallery_however_small():
    own = retrieval.rank(jnp.ones((1, 3)), np.array([5]), jnp.ones((4, 3)), np.array([0, 0, 1, 0]))
    assert (int(own.first[0]), float(own.precision[0])) == (NOWHERE, 0.0)
    numbers = retrieval.retrieval(jnp.ones((2, 3)), jnp.ones((1, 3)), np.array([0]), ks=(1, 10))
    assert numbers["image_to_text_R10"] == 50  # the second image has no text


def test_pairs_of_equal_features_find_each_other():
    first = draw(0, 6, 4)
    assert retrieval.recall_of_pairs(first, 2 * first) == 1
    assert retrieval.recall_of_pairs(first, first[::-1]) < 0.5


def test_features_that_diverged_find_nothing():
    image, text = draw(0, 4, 3), draw(1, 4, 3)
    lost = jnp.full_like(image, jnp.nan)
    numbers = retrieval.retrieval(lost, text, np.arange(4), ks=(1, 3))
    assert all(numbers[f"{way}_R3"] == 0 for way in ("image_to_text", "text_to_image"))
    assert retrieval.recall_of_pairs(lost, text) == 0
    # One broken image is lost itself, and hides no other.
    pairs = retrieval.recall_of_pairs(image.at[0].set(jnp.nan), image)
    assert float(pairs) == 0.75
