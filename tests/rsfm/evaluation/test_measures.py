"""What measures of classification, retrieval, segmentation and detection are invariant to."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.rsfm.evaluation.measures import (
    classification,
    detection,
    retrieval,
    segmentation,
)
from tests.rsfm.small import draw

TRUTH = jnp.asarray(np.random.default_rng(0).integers(0, 3, (2, 6, 6)))
SAID = jnp.asarray(np.random.default_rng(1).integers(0, 3, (2, 6, 6)))


def test_more_pixels_than_int32_can_count():
    own = segmentation.confusion(TRUTH, SAID, 3)
    batches = jnp.stack([own * (2**30 // int(own.max()))] * 4)
    found = segmentation.measures(batches)
    expected = segmentation.measures(own)
    np.testing.assert_allclose(found.iou, expected.iou, rtol=1e-5)
    np.testing.assert_allclose(found.kappa, expected.kappa, rtol=1e-4)
    wrapped = jnp.sum(batches, axis=0, dtype=jnp.int32)
    assert np.isnan(segmentation.measures(wrapped).miou)


def test_classes_renamed_alike_have_the_same_iou():
    renamed = jnp.array([2, 0, 1])
    own = segmentation.measures(segmentation.confusion(TRUTH, SAID, 3))
    other = segmentation.measures(segmentation.confusion(renamed[TRUTH], renamed[SAID], 3))
    np.testing.assert_allclose(other.miou, own.miou, rtol=1e-6)
    np.testing.assert_allclose(other.iou[renamed], own.iou, rtol=1e-6)
    np.testing.assert_allclose(other.kappa, own.kappa, rtol=1e-5)


def test_ignored_pixels_count_for_nothing():
    holes = jnp.where(jnp.arange(6) < 2, 255, TRUTH)
    other = jnp.where(jnp.arange(6) < 2, 0, SAID)
    own = segmentation.confusion(holes, SAID, 3)
    np.testing.assert_array_equal(own, segmentation.confusion(holes, other, 3))
    assert own.sum() == 2 * 6 * 4


def test_a_class_that_occurs_nowhere_is_in_no_mean():
    own = segmentation.measures(segmentation.confusion(TRUTH, SAID, 5))
    less = segmentation.measures(segmentation.confusion(TRUTH, SAID, 3))
    np.testing.assert_allclose(own.miou, less.miou, rtol=1e-6)
    assert np.isnan(own.iou[4])


def test_an_ignored_class_is_in_no_mean_though_it_is_named():
    """Torchmetrics' issue 1692: its 0 was a part of the mean over the others."""
    truth, said = jnp.array([0, 0, 1, 1, 2, 2]), jnp.array([0, 1, 1, 1, 2, 0])
    own = segmentation.measures(segmentation.confusion(truth, said, 3, ignored=0), ignored=0)
    np.testing.assert_allclose(own.iou, [np.nan, 1, 1 / 2])
    assert own.miou == 0.75


def test_average_precision_depends_on_the_order_alone_and_is_scikit_learns():
    scores, truth = np.round(np.asarray(draw(0, 40)), 1), np.arange(40) % 3 == 0
    own = classification.average_precision(jnp.asarray(scores), jnp.asarray(truth))
    other = classification.average_precision(jnp.asarray(np.exp(scores)), jnp.asarray(truth))
    np.testing.assert_allclose(own, other, rtol=1e-6)
    metrics = pytest.importorskip("sklearn.metrics")
    expected = metrics.average_precision_score(truth, scores)
    np.testing.assert_allclose(own, expected, rtol=1e-5)


def test_scores_that_are_nan_are_never_right():
    labels = jnp.array([0, 1])
    scores = jnp.array([[jnp.nan, jnp.nan, jnp.nan], [0.0, 1.0, jnp.nan]])
    assert classification.top_k_accuracy(scores, labels, 1) == 0
    assert classification.top_k_accuracy(scores, labels, 2) == 0.5


def test_half_precision_counts_as_many_images_as_float32():
    scores = draw(0, 1000).astype(jnp.bfloat16)
    truth = jnp.arange(1000) % 2
    own = classification.average_precision(scores, truth)
    assert own == classification.average_precision(scores.astype(jnp.float32), truth)


def test_a_prediction_that_is_no_class_is_refused_where_a_pixel_counts():
    truth, said = jnp.array([0, 1, 255]), jnp.array([0, 1, 7])
    assert segmentation.confusion(truth, said, 3).sum() == 2
    with pytest.raises(ValueError, match="predicted: expected classes 0 to 2, got 7"):
        segmentation.confusion(truth.at[2].set(2), said, 3)
    # Of NaN, `chosen` is -1: in a program nothing can be refused, but nothing is right either.
    traced = jax.jit(segmentation.confusion, static_argnums=2)(truth, said.at[0].set(-1), 3)
    assert np.isnan(segmentation.measures(traced).miou)


def test_the_mean_over_classes_does_not_depend_on_their_sizes():
    labels, said = jnp.array([0, 0, 0, 1]), jnp.array([0, 0, 0, 0])
    assert classification.mean_class_accuracy(said, labels, 3) == 0.5
    assert classification.top_k_accuracy(jnp.eye(4)[said], labels, 1) == 0.75


def test_identical_embeddings_are_found_first_and_recall_grows_with_k():
    features = draw(0, 6, 5)
    own = retrieval.retrieval(features, features, np.arange(6))
    assert own["mean_recall"] == 100
    other = retrieval.retrieval(features, draw(1, 12, 5), np.arange(12) % 6)
    for way in ("image_to_text", "text_to_image"):
        assert other[f"{way}_R1"] <= other[f"{way}_R5"] <= other[f"{way}_R10"]


def test_average_precision_of_boxes_in_words():
    truth, image = np.array([[0.0, 0, 2, 2], [4, 4, 6, 6]]), np.zeros(2, int)
    found = (truth, np.array([0.9, 0.8]), image, truth, image)
    assert detection.average_precision(*found) == 1
    assert detection.coco_average_precision(*found) == pytest.approx(1)
    twice = (truth[[0, 0, 1]], np.array([0.9, 0.8, 0.7]), np.zeros(3, int), truth, image)
    assert detection.average_precision(*twice) == pytest.approx(0.5 + 0.5 * 2 / 3)
    elsewhere = (*found[:2], np.ones(2, int), truth, image)
    assert detection.average_precision(*elsewhere) == 0


def test_a_turned_square_overlaps_as_geometry_says():
    square = np.array([[[-1.0, -1], [1, -1], [1, 1], [-1, 1]]])
    root = np.sqrt(2)
    turned = np.array([[[0.0, -root], [root, 0], [0, root], [-root, 0]]])
    shared = 8 * (root - 1)  # a regular octagon
    own = detection.polygon_iou(square, turned)[0, 0]
    assert own == pytest.approx(shared / (8 - shared))
    boxes = detection.box_iou(np.array([[-1.0, -1, 1, 1]]), np.array([[0.0, 0, 2, 2]]))[0, 0]
    assert detection.polygon_iou(square, square + 1)[0, 0] == pytest.approx(boxes)
    # A tenth of a meter is a millionth of a degree.
    small = np.array([[-1e-6, -1e-6, 1e-6, 1e-6]])
    assert detection.box_iou(small, small + 1e-6)[0, 0] == pytest.approx(boxes)
    assert detection.polygon_iou(1e-9 * square, 1e-9 * (square + 1))[0, 0] == pytest.approx(boxes)
    assert detection.box_iou(0 * small, 0 * small)[0, 0] == 0


def test_a_label_that_no_image_has_is_in_no_mean():
    scores, truth = draw(0, 6, 3), jnp.zeros((6, 3)).at[::2, :2].set(1)
    own = classification.multilabel(scores, truth)
    np.testing.assert_allclose(own.map_macro, own.ap[:2].mean(), rtol=1e-6)


def test_boxes_and_scores_of_bytes_do_not_wrap_around():
    boxes = np.array([[0, 0, 200, 200], [100, 100, 250, 250]])
    own = detection.box_iou(*(boxes[place : place + 1].astype(np.uint8) for place in (0, 1)))
    np.testing.assert_allclose(own, detection.box_iou(boxes[:1], boxes[1:]))
    image = np.zeros(2, int)
    scores = np.array([200, 100], np.uint8)
    assert detection.average_precision(boxes, scores, image, boxes[:1], image[:1]) == 1


@pytest.mark.slow
def test_images_without_a_label_are_in_no_mean():
    scores, labels = jnp.eye(3)[np.array([2, 2, 0, 1])], jnp.array([-1, -1, 0, 2])
    assert classification.top_k_accuracy(scores, labels) == 0.5
    truth = jnp.array([[1, 0, -1], [0, 1, -1], [-1, 1, 1], [1, -1, 0]])
    own = classification.multilabel(draw(0, 4, 3), truth, 0.0)
    for place in range(3):
        known = np.asarray(truth[:, place]) >= 0
        alone = draw(0, 4, 3)[known, place, None], truth[known, place, None]
        less = classification.multilabel(*alone, 0.0)
        np.testing.assert_allclose(own.ap[place], less.ap[0], rtol=1e-6)
        np.testing.assert_allclose(own.f1[place], less.f1[0], rtol=1e-6)


def test_a_label_that_no_image_has_and_none_is_said_to_have_is_in_no_mean_of_f1():
    own = classification.multilabel(jnp.array([[0.9, 0.1, 0.1]]), jnp.array([[1, 1, 0]]))
    np.testing.assert_array_equal(own.f1, [1, 0, np.nan])
    assert own.f1_macro == 0.5


@pytest.mark.parametrize("kind", [np.uint8, np.int16])
def test_corners_of_small_integers_do_not_wrap_around(kind):
    large = np.array([[[0, 0], [200, 0], [200, 200], [0, 200]], [[0, 0], [9, 0], [9, 9], [0, 9]]])
    own = detection.polygon_iou(large.astype(kind), (large // 2).astype(kind))
    np.testing.assert_allclose(own, detection.polygon_iou(large * 1.0, large // 2 * 1.0))
    np.testing.assert_allclose(own[0, 0], 0.25)


def test_polygons_far_from_the_origin_keep_their_areas_in_float32():
    near = np.array([[[0.0, 0], [20, 0], [20, 20], [0, 20]]] * 2)
    far = (near + np.array([5e5, 4.5e6])).astype(np.float32)
    own = detection.polygon_iou(far, far + np.float32([10, 0]))
    np.testing.assert_allclose(own, 1 / 3, rtol=1e-6)


@pytest.mark.slow
def test_an_object_without_a_box_hides_no_other_of_its_image():
    truth = np.array([[np.nan] * 4, [0.0, 0, 2, 2]])
    found = detection.average_precision(truth[1:], [0.9], [0], truth, [0, 0])
    assert found == pytest.approx(0.5)
