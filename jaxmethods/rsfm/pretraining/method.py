r"""Pretraining of a masked autoencoder as a `Method`: AdamW on random crops of random images.

    method = pretrainer(config, training, steps)
    state = method.init(key, Pixels(images, mean, std))
    state, metrics = method.step(state, batch)  # loss, rate, gradient_norm

Images stay on the device as they were read (bytes, 16-bit numbers); a step draws rows, crops,
mirrors, normalizes and cuts patches there. A crop that is enlarged has smaller pixels on the
ground, so the ground sampling distance follows it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmethods.method import Method, Metrics, Objective, gradient_step
from jaxmethods.models.geovit.encoder import Context
from jaxmethods.numerics.keys import named
from jaxmethods.rsfm.config import MAEConfig, PretrainConfig
from jaxmethods.rsfm.pretraining import mae


class Pixels(NamedTuple):
    """Images to learn from, all of them on the device."""

    images: jax.Array
    """[N, H, W, C] of any type."""
    mean: jax.Array
    """[C], in the unit of the images."""
    std: jax.Array
    """[C]"""
    valid: jax.Array | None = None
    """[N, H, W] bool; None: all pixels have data."""
    gsd: jax.Array | None = None
    """[N] meters of a pixel."""
    slots: jax.Array | None = None
    """[B] int32, 0 to B - 1; how it is split over devices decides how a step's images are."""


class State(NamedTuple):
    """A masked autoencoder under way."""

    key: jax.Array
    step: jax.Array
    """[] int32"""
    params: Any
    """{"encoder", "decoder"}, float32."""
    optimizer: optax.OptState


class Views(NamedTuple):
    """The images of one step."""

    images: jax.Array
    """[B, H, W, C] float32, normalized."""
    valid: jax.Array | None
    """[B, H, W] bool"""
    gsd: jax.Array | None
    """[B] meters of a pixel of the view."""


def pretrainer(config: MAEConfig, training: PretrainConfig) -> Method:
    """Makes the pretraining of a masked autoencoder.

    Args:
        config: encoder, decoder and masks.
        training: steps, batch, rates, crops and the type of the computation.

    Returns:
        `init(key, Pixels)` and `step(state, Pixels)` on a `State`; metrics are `loss`, `rate`
        and `gradient_norm`.
    """
    optimizer = make_optimizer(training)

    def init(key: jax.Array, batch: Pixels) -> State:
        del batch
        params_key, own = jax.random.split(key)
        params = mae.init(params_key, config)
        return State(own, jnp.zeros((), jnp.int32), params, optimizer.init(params))

    def objective(state: State, batch: Pixels) -> Objective:
        def loss(params: Any, key: jax.Array) -> jax.Array:
            views = draw_views(key, batch, training)
            noise = jax.random.uniform(named(key, "noise"), mae.noise_shape(config, training.batch))
            return masked_loss(params, config, training, views, noise)

        return Objective(state.params, loss)

    def step(state: State, batch: Pixels) -> tuple[State, Metrics]:
        params, loss = objective(state, batch)
        now = jax.random.fold_in(state.key, state.step)
        value, gradient = jax.value_and_grad(loss)(params, now)
        params, moments = gradient_step(optimizer, gradient, state.optimizer, state.params)
        metrics = {
            "loss": value,
            "rate": rate_at(training)(state.step),
            "gradient_norm": optax.tree.norm(gradient),
        }
        return State(state.key, state.step + 1, params, moments), metrics

    return Method(init, step, objective)


def masked_loss(
    params: Any, config: MAEConfig, training: PretrainConfig, views: Views, noise: jax.Array
) -> jax.Array:
    """The loss of views, computed in the type that the training says.

    Args:
        params: float32.
        config: static.
        training: static.
        views: normalized images.
        noise: that decides the masks.

    Returns:
        [] float32.
    """
    dtype = jnp.dtype(training.dtype)
    narrow = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    out = mae.forward(
        narrow,
        config,
        views.images,
        noise,
        Context(gsd=views.gsd),
        valid=views.valid,
        remat=training.remat,
    )
    return out.loss


def held_out_loss(
    params: Any, config: MAEConfig, training: PretrainConfig, batch: Pixels, key: jax.Array
) -> jax.Array:
    """The loss of images as they are, without crops; all of them at once.

    Args:
        params: float32.
        config: static.
        training: static.
        batch: N images.
        key: [] typed random key of the masks.

    Returns:
        [] float32.
    """
    views = Views(normalized(batch.images, batch), batch.valid, batch.gsd)
    noise = jax.random.uniform(key, mae.noise_shape(config, len(batch.images)))
    return masked_loss(params, config, training, views, noise)


def draw_views(key: jax.Array, batch: Pixels, training: PretrainConfig) -> Views:
    """Random images, cropped and mirrored at random, normalized.

    Args:
        key: [] typed random key of the step.
        batch: N images.
        training: batch size and crops.

    Returns:
        B views.
    """
    number = training.batch
    slots = jnp.arange(number) if batch.slots is None else batch.slots
    rows = jax.random.randint(named(key, "rows"), (number,), 0, len(batch.images))[slots]
    images = normalized(batch.images[rows], batch)
    valid = None if batch.valid is None else batch.valid[rows]
    gsd = None if batch.gsd is None else batch.gsd[rows]
    if training.crop < 1:
        keys = jax.random.split(named(key, "crops"), number)[slots]
        maps, sides = jax.vmap(crop_maps, (0, None, None))(keys, images.shape[1], training.crop)
        images = jnp.einsum("bph,bhwc->bpwc", maps[:, 0], images)
        images = jnp.einsum("bqw,bpwc->bpqc", maps[:, 1], images)
        if valid is not None:
            seen = jnp.einsum("bph,bhw,bqw->bpq", maps[:, 0], 1.0 - valid, maps[:, 1])
            valid = seen < 1e-6  # none of the pixels that a pixel is made of lacks data
        gsd = None if gsd is None else gsd * sides
    if training.mirror:
        turn = jax.random.bernoulli(named(key, "mirror"), 0.5, (3, number))[:, slots]
        images = mirrored(images, turn)
        valid = None if valid is None else mirrored(valid, turn)
    return Views(images, valid, gsd)


def crop_maps(key: jax.Array, size: int, smallest: float) -> tuple[jax.Array, jax.Array]:
    """Bilinear maps that cut a random square out and enlarge it to the whole.

    Args:
        key: [] typed random key.
        size: pixels along a side; static.
        smallest: of the areas that are drawn, as a share.

    Returns:
        [2, size, size] of rows and columns, and [] the side as a share of the whole.
    """
    area_key, place_key = jax.random.split(key)
    side = jnp.sqrt(jax.random.uniform(area_key, minval=smallest, maxval=1.0))
    start = jax.random.uniform(place_key, (2, 1)) * (1 - side) * size
    centers = start + (jnp.arange(size) + 0.5) * side - 0.5  # [2, size]
    centers = jnp.clip(centers, 0, size - 1)
    distance = jnp.abs(centers[..., None] - jnp.arange(size))
    return jnp.maximum(1 - distance, 0), side


def normalized(images: jax.Array, batch: Pixels) -> jax.Array:
    """(x - mean) / std in float32, whatever the images' type."""
    return (images.astype(jnp.float32) - batch.mean) / batch.std


def rate_at(training: PretrainConfig) -> optax.Schedule:
    """The learning rate of every step: it grows with the batch, warms up and falls as a cosine."""
    own = training.optimizer
    largest = own.learning_rate * training.batch / 256
    return optax.warmup_cosine_decay_schedule(
        0.0 if own.warmup else largest,
        largest,
        max(int(own.warmup * training.steps), 1),
        max(training.steps, 2),
        own.min_learning_rate,
    )


def make_optimizer(training: PretrainConfig) -> optax.GradientTransformation:
    """AdamW; biases, norms and single tokens have no decay."""
    own = training.optimizer
    return optax.adamw(
        rate_at(training), b1=0.9, b2=own.beta_2, weight_decay=own.weight_decay, mask=decayed
    )


def decayed(params: Any) -> Any:
    """Which leaves have weight decay: matrices; those of stacked blocks have an axis more."""

    def own(path: Any, leaf: jax.Array) -> bool:
        stacked = any(getattr(key, "key", None) == "blocks" for key in path)
        return leaf.ndim - stacked > 1

    return jax.tree_util.tree_map_with_path(own, params)


def mirrored(images: jax.Array, turn: jax.Array) -> jax.Array:
    """Flips rows and columns of [B, H, W, ...], and swaps them, where `turn` [3, B] says so."""
    wide = turn.reshape(3, -1, *[1] * (images.ndim - 1))
    images = jnp.where(wide[0], images[:, ::-1], images)
    images = jnp.where(wide[1], images[:, :, ::-1], images)
    return jnp.where(wide[2], jnp.swapaxes(images, 1, 2), images)
