"""Pretraining as a pure step: the same on one device and on many, compiled once, deterministic."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmethods.data import crops
from jaxmethods.rsfm.config import OptimizerConfig, PretrainConfig
from jaxmethods.rsfm.pretraining import learners, method, views
from jaxmethods.rsfm.pretraining.method import pretrainer
from jaxmethods.rsfm.pretraining.views import Pixels
from tests.rsfm.small import MAE

TRAINING = PretrainConfig(
    steps=20, batch=8, optimizer=OptimizerConfig(learning_rate=0.05, warmup=0.1)
)


@pytest.fixture(scope="module")
def pixels():
    """Bytes with structure in them: the same waves in every image, shifted."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(16), np.arange(16))
    waves = [np.sin((x + y) / 3 + phase) for phase in rng.uniform(0, 6, 24)]
    images = (127 + 100 * np.stack(waves)[..., None] * [1, 0.5, -0.5]).astype(np.uint8)
    slots = np.arange(8, dtype=np.int32)
    mean, std = np.full(3, 127, np.float32), np.full(3, 60, np.float32)
    return Pixels(images, mean, std, gsd=np.full(24, 10.0, np.float32), slots=slots)


@pytest.fixture(scope="module")
def trained(pixels):
    own = pretrainer(MAE, TRAINING)
    counted = chex.assert_max_traces(own.step, n=1)
    step = jax.jit(counted)
    batch = jax.tree.map(jnp.asarray, pixels)
    state, losses = own.init(jax.random.key(0), batch), []
    for _ in range(20):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return state, losses, step


def test_the_loss_falls_and_the_step_is_compiled_once(trained):
    _, losses, _ = trained
    assert np.mean(losses[-4:]) < 0.95 * np.mean(losses[:4])


def test_the_first_step_has_no_rate_where_there_is_a_warm_up():
    rate = method.rate_at(TRAINING)
    assert float(rate(0)) == 0
    np.testing.assert_allclose(float(rate(2)), 0.05 * 8 / 256, rtol=1e-6)


@pytest.mark.slow
def test_eight_devices_take_the_step_of_one(pixels):
    own = pretrainer(MAE, TRAINING)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    batch = jax.tree.map(jnp.asarray, pixels)
    many = jax.device_put(batch, whole)._replace(slots=jax.device_put(batch.slots, split))
    state = own.init(jax.random.key(0), batch)
    drawn = views.draw_views(jax.random.key(1), batch, TRAINING)
    noise = jax.random.uniform(jax.random.key(2), (8, 16))

    def loss(params, own):
        return learners.masked_loss(params, MAE, TRAINING, own, noise)

    step = jax.jit(jax.value_and_grad(loss))
    spread = jax.jit(views.draw_views, static_argnums=2)(jax.random.key(1), many, TRAINING)
    assert not spread.images.sharding.is_fully_replicated
    one = step(state.params, drawn)
    other = step(jax.device_put(state.params, whole), spread)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), other, one)


def test_a_crop_has_smaller_pixels(pixels):
    batch = jax.tree.map(jnp.asarray, pixels)
    drawn = views.draw_views(jax.random.key(3), batch, TRAINING)
    assert np.all((drawn.gsd >= 10 * 0.4**0.5) & (drawn.gsd <= 10))
    maps, side = crops.crop_maps(jax.random.key(4), 16, 1.0 - 1e-6)
    np.testing.assert_allclose(maps, np.stack([np.eye(16)] * 2), atol=1e-3)
    np.testing.assert_allclose(side, 1, atol=1e-5)


def test_a_pixel_made_of_missing_ones_is_missing(pixels):
    batch = jax.tree.map(jnp.asarray, pixels)
    valid = jnp.ones((24, 16, 16), bool)
    own = views.draw_views(jax.random.key(3), batch._replace(valid=valid), TRAINING)
    assert np.all(own.valid)
    hole = valid.at[:, 4, 4].set(False)
    unseen = batch._replace(images=jnp.where(hole[..., None], batch.images, jnp.nan), valid=hole)
    assert np.all(np.isfinite(views.draw_views(jax.random.key(3), unseen, TRAINING).images))
    assert np.all(np.isfinite(views.whole_views(unseen).images))
    nothing = batch._replace(valid=jnp.zeros_like(valid))
    assert not np.any(views.draw_views(jax.random.key(3), nothing, TRAINING).valid)


def test_vectors_and_single_tokens_have_no_decay():
    training = TRAINING.model_copy(
        update={"optimizer": OptimizerConfig(weight_decay=0.5, warmup=0.0)}
    )
    optimizer = method.make_optimizer(training)
    params = {"blocks": {"w": jnp.ones((1, 2, 2)), "b": jnp.ones((1, 2))}, "cls": jnp.ones(2)}
    state = optimizer.init(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, state, params)
    assert np.all(updates["blocks"]["w"] < 0)
    np.testing.assert_array_equal(updates["blocks"]["b"], 0)
    np.testing.assert_array_equal(updates["cls"], 0)
