"""A tower learns which views show the same image, and a base goes on from there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.merging import finetuning
from jaxmethods.merging.config import BaseConfig, PretrainingConfig
from jaxmethods.merging.finetuning import BaseBatch, Images
from jaxmethods.merging.self_supervision import contraster, views
from tests.merging import tiny
from tests.programs import uniform

CONFIG = PretrainingConfig(steps=16, batch_size=8, learning_rate=1e-2, shift=0)


@pytest.fixture(scope="module")
def images():
    """Two tasks of images that differ in brightness and in the place of an edge."""
    rng = np.random.default_rng(0)
    pictures = np.zeros((2, 8, 8, 8, 3), np.uint8)
    for task in range(2):
        for one in range(8):
            pictures[task, one, :, : 1 + one % 7] = rng.integers(60, 255, 3)
    labels = np.arange(16).reshape(2, 8) % 4
    return Images(
        jnp.asarray(pictures), jnp.asarray(labels), jnp.asarray([8, 8]), jnp.ones((2, 4), bool)
    )


def test_views_without_crop_and_jitter_are_the_image():
    pixels = jnp.asarray(uniform(0, -1, 1, 3, 8, 8, 3))
    plain = CONFIG.model_copy(update={"crop": 1 - 1e-6, "jitter": 0.0})
    same = views(jax.random.key(0), pixels, plain)
    np.testing.assert_allclose(same, pixels, atol=1e-4)
    found = views(jax.random.key(0), pixels, CONFIG)
    assert np.abs(found).max() <= 1
    assert all(np.abs(found[row] - pixels[row]).max() > 0.1 for row in range(3))


@pytest.mark.slow
def test_a_tower_learns_which_views_show_one_image_and_labels_have_no_part_in_it(images):
    method = contraster(tiny.VISION, CONFIG)

    @jax.jit
    def train(labels):
        batch = images._replace(labels=labels)
        state = method.init(jax.random.key(0), batch)
        return jax.lax.scan(lambda s, _: method.step(s, batch), state, length=16)

    state, history = train(images.labels)
    assert history["loss"][-4:].mean() < history["loss"][:2].mean() - 0.3
    other, _ = train(images.labels[:, ::-1])
    jax.tree.map(np.testing.assert_array_equal, other.base, state.base)


def test_a_base_begins_where_it_is_asked_to(images):
    start = finetuning.init_base(jax.random.key(5), jax.random.key(6), tiny.VISION)
    method = finetuning.pretrainer(tiny.VISION, BaseConfig(steps=2, batch_size=4), 10.0)
    batch = BaseBatch(images, jnp.asarray([4, 4]), start)
    begun = method.init(jax.random.key(0), batch)
    jax.tree.map(np.testing.assert_array_equal, begun.base, start)
    fresh = method.init(jax.random.key(0), batch._replace(start=None))
    np.testing.assert_array_equal(fresh.heads, begun.heads)
    assert np.abs(fresh.base.projection - start.projection).max() > 0.1
