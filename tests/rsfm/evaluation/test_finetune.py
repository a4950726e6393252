"""Fine-tuning with few labels: what moves, by how much, and from which images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.errors import DataError
from jaxmethods.models import geovit
from jaxmethods.rsfm.config import FinetuneConfig
from jaxmethods.rsfm.evaluation import fewshot, finetune
from jaxmethods.rsfm.evaluation.finetune import Labeled
from tests.rsfm.small import TINY, draw, encoder_params

CLASSES, SHOTS = 2, 3
CONFIG = TINY.model_copy(update={"image_size": 8, "depth": 2})
TRAINING = FinetuneConfig(shots=(SHOTS,), draws=2, steps=12, batch=6, learning_rate=0.02, rank=2)
LABELS = jnp.arange(20) % CLASSES


def images(seed, labels):
    """Two classes that differ in one band."""
    bright = jnp.array([0.0, 0.0, 1.5]) * (2 * labels[:, None, None, None] - 1)
    return 0.3 * draw(seed, len(labels), 8, 8, 3) + bright


@pytest.fixture(scope="module")
def rows():
    keys = jax.random.split(jax.random.key(0), 2)
    return jax.vmap(lambda key: fewshot.draw_shots(key, LABELS, SHOTS, CLASSES))(keys)


def test_draws_are_balanced_differ_and_hold_no_image_twice(rows):
    for own in np.asarray(rows):
        np.testing.assert_array_equal(np.bincount(LABELS[own]), [SHOTS, SHOTS])
        assert len(set(own.tolist())) == CLASSES * SHOTS
    assert set(rows[0].tolist()) != set(rows[1].tolist())
    some = LABELS.at[:4].set(-1)
    drawn = fewshot.draw_shots(jax.random.key(0), some, SHOTS, CLASSES)
    np.testing.assert_array_equal(np.bincount(some[drawn], minlength=CLASSES), [SHOTS, SHOTS])
    with pytest.raises(DataError, match=r"at least 9 images .* got 8 of water"):
        fewshot.check_shots(np.asarray(some), 9, ("water", "forest"))
    with pytest.raises(DataError, match=r"at least 11 images .* got 10 of water"):
        fewshot.check_shots(np.asarray(LABELS), 11, ("water", "forest"))


def test_a_probe_of_a_few_features_names_the_rest(rows):
    features = images(1, LABELS).mean((1, 2))
    said = fewshot.few_shot(rows, features, LABELS, features, classes=CLASSES)
    assert said.shape == (2, 20)
    assert np.all(said == LABELS)


def test_low_blocks_move_less_and_the_head_with_the_whole_rate():
    params = encoder_params(CONFIG)
    trained = finetune.start(jax.random.key(0), params, CONFIG, CLASSES, "full", 2)
    scales = finetune.rate_scales(trained, CONFIG.depth, 0.5)
    assert scales["head"]["weight"] == scales["encoder"]["norm"]["bias"] == 1
    assert scales["encoder"]["cls_token"] == scales["encoder"]["patch_embed"]["bias"] == 0.125
    own = scales["encoder"]["blocks"]["mlp"]["fc1"]["weight"]
    np.testing.assert_allclose(own.reshape(-1), [0.25, 0.5])


def test_fresh_additions_change_nothing():
    params = encoder_params(CONFIG)
    trained = finetune.start(jax.random.key(0), params, CONFIG, CLASSES, "lora", 2)
    same = finetune.adapted(params, trained["blocks"])
    jax.tree.map(np.testing.assert_array_equal, same, params)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["full", "lora"])
def test_a_few_labels_are_enough_where_classes_differ(rows, how):
    params = jax.jit(geovit.init, static_argnums=1)(jax.random.key(1), CONFIG)
    test = images(2, LABELS)
    said = finetune.finetune_draws(
        jax.random.split(jax.random.key(2), 2),
        params,
        rows,
        Labeled(images(1, LABELS), LABELS),
        test,
        config=CONFIG,
        training=TRAINING,
        classes=CLASSES,
        how=how,
    )
    assert said.shape == (2, 20)
    assert np.mean(said == LABELS) > 0.9
