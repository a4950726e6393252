"""Whole scenes through models of small images, and heads that paint."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.models.geovit.patches import patchify
from jaxmethods.rsfm.evaluation.segmenter import fit_segmenter, segment
from jaxmethods.rsfm.evaluation.tiles import tiled_apply
from tests.rsfm.small import draw


@pytest.mark.parametrize(("height", "width", "stride"), [(13, 21, None), (8, 8, 8), (5, 30, 3)])
def test_a_model_that_returns_its_input_returns_the_scene(height, width, stride):
    scene = draw(0, height, width, 2)
    own = tiled_apply(lambda tiles: tiles, scene, 8, stride, batch=3)
    np.testing.assert_allclose(own, scene, atol=1e-6)


def test_windows_may_not_leave_gaps():
    with pytest.raises(ValueError, match="stride: expected 1 to window = 4, got 5"):
        tiled_apply(lambda tiles: tiles, jnp.zeros((8, 8, 1)), 4, 5)


def test_a_head_learns_classes_of_pixels_and_ignores_those_without():
    images = draw(1, 6, 8, 8, 2)
    labels = (images[..., 0] > 0).astype(jnp.uint8)
    spoiled = labels.at[:, 0].set(255)
    tokens = patchify(images, 2)
    head = fit_segmenter(tokens, spoiled, patch=2, classes=2, steps=60, rate=0.05)
    said = jnp.argmax(segment(head, tokens, 2, 2), axis=-1)
    assert np.mean(np.asarray(said == labels)[:, 1:]) > 0.95
    assert head.losses[-1] < head.losses[0]
