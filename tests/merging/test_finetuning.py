"""Where experts come from: shares of labels, frozen heads, and what fine-tuning may touch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.data.images import Split
from jaxmethods.merging import finetuning
from jaxmethods.merging.config import BaseConfig, ExpertsConfig
from jaxmethods.merging.finetuning import Base, BaseBatch, ExpertsBatch
from jaxmethods.models.clip import vit
from tests.merging import tiny

CLASSES = (4, 6)
SCALE = 10.0


def split(seed, count, classes):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return Split(images, random.permutation(np.arange(count) % classes).astype(np.int32))


SPLITS = [split(0, 21, 4), split(1, 30, 6)]


def images():
    return finetuning.stack_images(SPLITS, CLASSES)


def base(seed=0):
    keys = jax.random.split(jax.random.key(seed))
    projection = jax.random.normal(keys[1], (6, tiny.VISION.hidden_size))
    return Base(vit.init(keys[0], tiny.VISION), projection)


def test_every_beginning_of_a_stratified_order_has_all_classes_in_proportion():
    ordered = finetuning.stratified(split(2, 60, 6), seed=3)
    for length in (6, 12, 30):
        counts = np.bincount(ordered.labels[:length], minlength=6)
        np.testing.assert_array_equal(counts, length // 6)
    assert sorted(x.tobytes() for x in ordered.images) == sorted(
        x.tobytes() for x in split(2, 60, 6).images
    )
    assert (ordered.labels != finetuning.stratified(split(2, 60, 6), seed=4).labels).any() or (
        ordered.images != finetuning.stratified(split(2, 60, 6), seed=4).images
    ).any()


def test_a_share_is_the_beginning_and_padding_belongs_to_no_task():
    everything = images()
    np.testing.assert_array_equal(everything.images[0, :21], SPLITS[0].images)
    assert not everything.images[0, 21:].any()
    some = everything._replace(counts=finetuning.count_labeled(everything, 0.5))
    np.testing.assert_array_equal(some.counts, [10, 15])
    np.testing.assert_array_equal(finetuning.count_labeled(everything, 0.0), [1, 1])
    np.testing.assert_array_equal(some.classes.sum(1), CLASSES)
    drawn, labels = finetuning.draw(jax.random.key(0), some, BaseConfig(batch_size=15, shift=0))
    known = {x.tobytes() for x in np.asarray(finetuning.to_pixels(some.images[0, :10]))}
    assert {x.tobytes() for x in np.asarray(drawn[0])} == known
    assert drawn.shape == (2, 15, 8, 8, 3)
    assert labels.shape == (2, 15)


def test_prototypes_are_the_centered_normalized_class_means():
    start = base()
    heads = jax.jit(
        lambda start, images: finetuning.prototypes(start, tiny.VISION, images, chunk=8)
    )(start, images())
    encode = jax.jit(finetuning.encode, static_argnums=1)
    for task, (part, classes) in enumerate(zip(SPLITS, CLASSES, strict=True)):
        pixels = finetuning.to_pixels(jnp.asarray(part.images))
        z = np.asarray(encode(start, tiny.VISION, pixels[None])[0])
        z = z / np.linalg.norm(z, axis=1, keepdims=True)
        means = np.stack([z[part.labels == c].mean(0) for c in range(classes)])
        centered = means - means.mean(0)
        expected = centered / np.linalg.norm(centered, axis=1, keepdims=True)
        np.testing.assert_allclose(heads.weights[task, :classes], expected, atol=1e-4)
        assert not heads.weights[task, classes:].any()


def test_a_class_without_an_image_has_no_prototype_and_no_part_in_the_others():
    some = finetuning.stack_images([split(0, 6, 2), split(1, 6, 1)], (2, 1))
    wider = some._replace(classes=jnp.array([[True, True, True], [True, False, False]]))
    found = finetuning.prototypes(base(), tiny.VISION, wider).weights
    # Their center is between the two that have images: these point away from each other.
    np.testing.assert_allclose(found[0, 0], -found[0, 1], atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(found[0], axis=-1), [1, 1, 0], rtol=1e-6)
    np.testing.assert_array_equal(found[1], 0)  # the only class was NaN


@pytest.fixture(scope="module")
def trained():
    """Experts after three steps, whose attention alone was trained."""
    start = base()
    batch = ExpertsBatch(images(), start, finetuning.prototypes(start, tiny.VISION, images()))
    config = ExpertsConfig(steps=10, batch_size=8, learning_rate=1e-2, trained="self_attn")
    method = finetuning.finetuner(tiny.VISION, config, SCALE)
    step = jax.jit(method.step)
    state = method.init(jax.random.key(1), batch)
    losses = []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(metrics)
    return start, state, losses


@pytest.mark.slow
def test_experts_differ_where_they_are_trained_and_are_the_base_elsewhere(trained):
    start, state, _ = trained
    for path, leaf in finetuning_leaves(state.stack):
        origin = dict(finetuning_leaves(start.tower))[path]
        if "self_attn" not in path:
            np.testing.assert_array_equal(leaf, np.stack([origin] * 2))
        elif "k_proj/bias" not in path:  # a softmax doesn't see a bias of all keys
            assert np.abs(leaf - origin).max() > 1e-4
            assert np.abs(leaf[0] - leaf[1]).max() > 1e-5


def finetuning_leaves(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(p, simple=True, separator="/"), leaf) for p, leaf in leaves]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_base_learns(optimizer):
    config = BaseConfig(
        steps=30, batch_size=16, learning_rate=3e-2, optimizer=optimizer, shift=1, weight_decay=0.0
    )
    method = finetuning.pretrainer(tiny.VISION, config, SCALE)
    batch = BaseBatch(images(), jnp.asarray([10, 15]))
    state = method.init(jax.random.key(0), batch)
    _, history = jax.jit(
        lambda state: jax.lax.scan(lambda s, _: method.step(s, batch), state, length=30)
    )(state)
    for name in ("loss", "task_loss"):
        assert history[name][-5:].mean() < 0.8 * history[name][:5].mean()


def test_a_shift_moves_images_by_no_more_than_it_may():
    pictures = jnp.zeros((64, 8, 8, 3), jnp.uint8).at[:, 4, 4].set(255)
    moved = np.asarray(finetuning.shift(jax.random.key(0), pictures, 2))
    found = np.argwhere(moved[..., 0] == 255)
    assert len(found) == 64
    offsets = found[:, 1:] - 4
    assert offsets.min() == -2
    assert offsets.max() == 2
    np.testing.assert_array_equal(finetuning.shift(jax.random.key(0), pictures, 0), pictures)
