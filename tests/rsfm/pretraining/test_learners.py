"""Every objective as a step: the loss falls, seeds are an axis, half precision is one field."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.models import clip, geovit
from jaxmethods.models.clip.vit import VisionConfig
from jaxmethods.models.geovit import Context, EncoderConfig, encode
from jaxmethods.rsfm.config import (
    ContrastConfig,
    ImageTextConfig,
    OptimizerConfig,
    PretrainConfig,
    ScaleMAEConfig,
)
from jaxmethods.rsfm.pretraining import learners, method
from jaxmethods.rsfm.pretraining.views import Pixels, Texts, Views, draw_views
from tests.programs import weights
from tests.rsfm.small import MAE, TINY, draw

TEXT = clip.TextConfig(
    vocab_size=8,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=4,
    eos_token_id=7,
)


def encoder(**changes):
    return EncoderConfig.model_validate(TINY.model_dump() | changes)


CONFIGS = {
    "groups": MAE.model_copy(
        update={
            "encoder": encoder(
                embedding="grouped", groups=((0, 2), (1,)), positions="group", channel_width=8
            ),
            "decoder_channel_width": 8,
        }
    ),
    "dates": MAE.model_copy(
        update={
            "encoder": encoder(positions="temporal", frames=2, date_width=4),
            "decoder_date_width": 4,
        }
    ),
    "scales": ScaleMAEConfig(
        encoder=encoder(positions="gsd", patch=16, image_size=32),
        decoder_width=16,
        decoder_depth=1,
        decoder_heads=2,
        fcn_width=8,
        fcn_layers=1,
        bands=(4, 64),
        mask_ratio=0.5,
    ),
    "sensors": ContrastConfig(
        encoder=encoder(embedding="per_sensor", sensors=(("optical", 3), ("radar", 2))),
        projection=8,
    ),
    "captions": ImageTextConfig(encoder=TINY, text=TEXT, projection=8),
    "clip": clip.CLIPConfig(
        vision=VisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=16,
            patch_size=4,
        ),
        text=TEXT,
        projection_dim=8,
    ),
}
TRAINING = PretrainConfig(
    steps=32, batch=8, crop=1.0, optimizer=OptimizerConfig(learning_rate=0.2, warmup=0.1)
)


def batch_of(name):
    """Eight places that differ, seen in every way that an objective asks for."""
    size = 64 if name == "scales" else 16
    rng = np.random.default_rng(0)
    levels = rng.normal(size=(8, 1, 1, 3)) + 0.3 * rng.normal(size=(8, size, size, 3))
    images = (levels + 2 * (name == "scales")).astype(np.float32)
    zeros, ones = np.zeros(3, np.float32), np.ones(3, np.float32)
    own = Pixels(images, zeros, ones, gsd=np.full(8, 10.0, np.float32))
    if name == "dates":
        days = np.tile(np.array([[[15, 0, 10], [15, 6, 10]]], np.float32), (8, 1, 1))
        own = own._replace(images=np.stack([images, -images], 1), timestamps=days)
    if name == "sensors":
        own = own._replace(other=Pixels(images[..., :2] ** 2, zeros[:2], ones[:2]))
    ids = np.stack([np.array([[n // 4, n % 4 // 2, 2 + n % 2, 7]]) for n in range(8)])
    own = own._replace(texts=Texts(ids.astype(np.int32), np.ones_like(ids)))
    return jax.tree.map(jnp.asarray, own)


def begin(name):
    learner = learners.learner_of(CONFIGS[name], TRAINING)
    params = weights(learner.init, seed=1, scale=0.3)
    keys = jax.random.split(jax.random.key(0), 2)
    return jax.vmap(method.begin, (0, None, None))(keys, params, TRAINING)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dates", "scales", "sensors", "captions"])
def test_every_objective_is_one_step_over_seeds_in_half_precision(name):
    """Nothing is compiled: shapes and types say that parameters and loss stay float32."""
    training = TRAINING.model_copy(update={"dtype": "bfloat16"})
    own, batch = method.pretrainer(CONFIGS[name], training), batch_of(name)
    keys = jax.random.split(jax.random.key(0), 2)
    states = jax.eval_shape(jax.vmap(own.init, (0, None)), keys, batch)
    assert own.objective is not None
    after, metrics = jax.eval_shape(jax.vmap(own.step, (0, None)), states, batch)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), states
    )
    floats = {leaf.dtype for leaf in jax.tree.leaves(after.params)}
    assert floats == {jnp.dtype("float32")}
    assert (metrics["loss"].shape, metrics["loss"].dtype) == ((2,), jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scales", "sensors", "captions"])
def test_the_loss_falls(name):
    own, batch, states = method.pretrainer(CONFIGS[name], TRAINING), batch_of(name), begin(name)
    step = jax.jit(jax.vmap(own.step, (0, None)))
    losses = []
    for _ in range(TRAINING.steps):
        states, metrics = step(states, batch)
        losses.append(np.asarray(metrics["loss"]))
    assert np.all(np.mean(losses[-8:], 0) < 0.95 * np.mean(losses[:8], 0))
    assert not np.allclose(losses[0][0], losses[0][1])  # other images, other masks


@pytest.mark.parametrize(
    ("name", "missing"), [("scales", "gsd"), ("sensors", "other"), ("captions", "texts")]
)
def test_what_an_objective_needs_and_a_batch_lacks_is_named(name, missing):
    views = Views(draw(0, 2, 16, 16, 3), None, None)
    learner = learners.learner_of(CONFIGS[name], TRAINING)
    with pytest.raises(ValueError, match=f"{missing}: expected"):
        learner.loss({}, views, jax.random.key(0))


def test_scale_mae_encodes_half_the_resolution_with_pixels_twice_as_large(monkeypatch):
    seen = {}

    def forward(params, config, images, targets, noise, gsd, valid):
        seen.update(images=images, targets=targets, gsd=gsd, valid=valid)
        return SimpleNamespace(loss=jnp.zeros(()))

    monkeypatch.setattr(learners.scale_mae, "forward", forward)
    images = draw(0, 2, 64, 64, 3)
    views = Views(images, jnp.ones((2, 64, 64), bool), jnp.array([1.0, 10.0]))
    learners.learner_of(CONFIGS["scales"], TRAINING).loss({}, views, jax.random.key(0))
    means = images.reshape(2, 32, 2, 32, 2, 3).mean((2, 4))
    np.testing.assert_allclose(seen["images"], means, atol=1e-5)
    np.testing.assert_array_equal(seen["targets"], images)
    np.testing.assert_array_equal(seen["gsd"], [2, 20])
    assert seen["valid"] is views.valid  # what has no data is in no loss


def test_a_view_has_the_other_sensor_and_a_caption_of_its_own_place():
    """Image n is n everywhere, its radar image 10 n, its captions are 2 n and 2 n + 1."""
    numbers = jnp.arange(6.0)
    flat = jnp.broadcast_to(numbers[:, None, None, None], (6, 4, 4, 3))
    ids = jnp.arange(12).reshape(6, 2, 1)
    batch = Pixels(flat, jnp.zeros(3), jnp.ones(3), texts=Texts(ids, jnp.ones_like(ids)))
    batch = batch._replace(other=Pixels(10 * flat[..., :2], jnp.zeros(2), jnp.ones(2)))
    training = TRAINING.model_copy(update={"crop": 0.5, "batch": 32})
    own = draw_views(jax.random.key(0), batch, training)
    place = own.images[:, 0, 0, 0]
    assert len(set(place.tolist())) > 3
    np.testing.assert_allclose(own.other.images[:, 2, 2, 1], 10 * place, atol=1e-4)
    np.testing.assert_allclose(own.texts.ids[:, 0] // 2, place, atol=1e-4)
    assert set((own.texts.ids[:, 0] % 2).tolist()) == {0, 1}


def test_an_encoder_of_dates_is_read_at_one_of_them():
    config = CONFIGS["dates"].encoder
    params, images = weights(geovit.init, config), draw(0, 2, 16, 16, 3)
    when = jnp.array([15.0, 6.0, 12.0])
    single, plain = learners.plain_encoder(params, config, "optical", when)
    own = encode(single, plain, images).cls
    context = Context(timestamps=jnp.tile(when, (2, 1, 1)))
    expected = encode(params, config.model_copy(update={"frames": 1}), images[:, None], context)
    np.testing.assert_allclose(own, expected.cls, atol=1e-5)
    with pytest.raises(ValueError, match="timestamp: expected"):
        learners.plain_encoder(params, config, "optical")


def test_a_sensors_own_embedding_is_kept():
    config = CONFIGS["sensors"].encoder
    params, images = weights(geovit.init, config), draw(0, 2, 16, 16, 2)
    single, plain = learners.plain_encoder(params, config, "radar")
    expected = encode(params, config, images, sensor="radar").cls
    np.testing.assert_array_equal(encode(single, plain, images).cls, expected)


def test_a_contrast_is_of_two_sensors():
    with pytest.raises(ValueError, match="encoder: expected embedding per_sensor of 2 sensors"):
        ContrastConfig(encoder=TINY)
