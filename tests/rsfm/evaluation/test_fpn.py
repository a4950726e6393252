"""A pyramid over the tokens of several blocks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.models.geovit import EncoderConfig
from jaxmethods.models.geovit.patches import patchify
from jaxmethods.rsfm.evaluation import fpn
from tests.rsfm.small import draw

SIZE, CLASSES = 8, 2


@pytest.fixture(scope="module")
def scenes():
    """Two halves of different brightness; the four levels are the pixels of the patches."""
    images = draw(1, 6, SIZE, SIZE, 1) * 0.3
    labels = jnp.tile(jnp.arange(SIZE) >= SIZE // 2, (6, SIZE, 1)).astype(jnp.int32)
    tokens = patchify(images + 2.0 * labels[..., None], 2)
    return jnp.stack([tokens] * 4, axis=1), labels


@pytest.mark.slow
def test_a_pyramid_learns_areas_and_ignores_pixels_without_a_class(scenes):
    levels, labels = scenes
    spoiled = labels.at[:, 0].set(fpn.IGNORED)
    settings = {"classes": CLASSES, "size": SIZE, "width": 8, "steps": 30, "rate": 0.02}
    head = fpn.fit_pyramid(jax.random.key(0), levels, spoiled, **settings)
    said = jnp.argmax(fpn.segment(head, levels, CLASSES, SIZE, 8), axis=-1)
    assert np.mean(np.asarray(said == labels)) > 0.95
    assert head.losses[-1] < 0.5 * head.losses[0]


def test_pixels_without_a_class_are_in_no_loss():
    logits = draw(2, 2, 4, 4, CLASSES)
    labels = jnp.arange(32).reshape(2, 4, 4) % CLASSES
    holes = labels.at[0].set(fpn.IGNORED)
    np.testing.assert_allclose(
        fpn.pixel_entropy(logits, holes, CLASSES),
        fpn.pixel_entropy(logits[1:], labels[1:], CLASSES),
        rtol=1e-6,
    )
    nothing = jnp.full((2, 4, 4), fpn.IGNORED)
    assert fpn.pixel_entropy(logits, nothing, CLASSES) == 0


def test_levels_are_quarters_of_the_depth_without_class_token_and_registers():
    config = EncoderConfig(width=8, depth=8, heads=2, patch=4, image_size=8, registers=1)
    assert fpn.default_blocks(config) == (2, 4, 6, 8)
    assert fpn.default_blocks(config.model_copy(update={"depth": 1})) == (1, 1, 1, 1)
    hidden = draw(3, 9, 2, 1 + 1 + 4, 8)
    own = fpn.levels_of(hidden, config, fpn.default_blocks(config))
    np.testing.assert_array_equal(own[:, 2], hidden[6][:, 2:])


def test_pooled_areas_are_pytorchs():
    torch = pytest.importorskip("torch")
    maps = draw(4, 2, 7, 7, 3)
    expected = torch.nn.functional.adaptive_avg_pool2d(
        torch.tensor(np.moveaxis(np.asarray(maps), -1, 1)), 3
    )
    own = fpn.averaged(maps, 3)
    np.testing.assert_allclose(np.moveaxis(np.asarray(own), -1, 1), expected.numpy(), atol=1e-6)
