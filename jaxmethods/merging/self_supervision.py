"""What the base's tower learns before it sees a label: which two views show the same image.

    L = InfoNCE(z(a(x)), z(b(x))),     z = V f(x; theta_0) / |.|,     x of all tasks together

a and b crop at random, and change brightness and contrast (SimCLR, Chen et al., ICML 2020,
arXiv 2002.05709; without its color shifts and blur, which small images don't bear, and without
mirrors, which change what a digit is). Not in the papers on merging, whose bases are CLIP's: it
says what a base is worth that saw many images and few labels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmethods.data.crops import crop_maps
from jaxmethods.merging.config import PretrainingConfig
from jaxmethods.merging.finetuning import Base, Images, draw, encode, init_base, make_optimizer
from jaxmethods.method import Method, Metrics, Objective, gradient_step
from jaxmethods.models.clip.contrastive import infonce
from jaxmethods.models.clip.vit import VisionConfig


class PretrainingState(NamedTuple):
    """A pytree of arrays."""

    key: jax.Array
    base: Base
    optimizer: optax.OptState
    step: jax.Array


def contraster(vision: VisionConfig, config: PretrainingConfig) -> Method:
    """Makes the training of a tower and its projection without labels; takes `Images`.

    Args:
        vision: the tower's sizes.
        config: of the training.

    Returns:
        The method; its metric is the loss.
    """
    optimizer = make_optimizer(config)

    def init(key: jax.Array, batch: Images) -> PretrainingState:
        key, tower_key, projection_key = jax.random.split(key, 3)
        base = init_base(tower_key, projection_key, vision)
        return PretrainingState(key, base, optimizer.init(base), jnp.int32(0))

    def loss(base: Base, key: jax.Array, batch: Images) -> jax.Array:
        draw_key, *keys = jax.random.split(key, 3)
        pixels, _ = draw(draw_key, batch, config)
        flat = pixels.reshape(-1, *pixels.shape[2:])  # [T b, H, W, 3]
        both = jnp.stack([views(own, flat, config) for own in keys])
        first, second = encode(base, vision, both)  # each [T b, P]
        return infonce(first, second, config.temperature)

    def step(state: PretrainingState, batch: Images) -> tuple[PretrainingState, Metrics]:
        key, own = jax.random.split(state.key)
        value, gradient = jax.value_and_grad(loss)(state.base, own, batch)
        base, moments = gradient_step(optimizer, gradient, state.optimizer, state.base)
        return PretrainingState(key, base, moments, state.step + 1), {"loss": value}

    def watched(state: PretrainingState, batch: Images) -> Objective:
        return Objective(state.base, lambda base, key: loss(base, key, batch))

    return Method(init, step, watched)


def views(key: jax.Array, pixels: jax.Array, config: PretrainingConfig) -> jax.Array:
    """Every image cropped at random, enlarged to its size, and its values scaled and moved.

    Args:
        key: [] typed random key.
        pixels: [n, H, W, C] with H = W, in [-1, 1].
        config: smallest crop and how far values change.

    Returns:
        [n, H, W, C], in [-1, 1].
    """
    crop_key, scale_key, move_key = jax.random.split(key, 3)
    keys = jax.random.split(crop_key, len(pixels))
    maps: Any = jax.vmap(crop_maps, (0, None, None))(keys, pixels.shape[1], config.crop)[0]
    cut = jnp.einsum("nph,nhwc,nqw->npqc", maps[:, 0], pixels, maps[:, 1])
    shape, most = (len(pixels), 1, 1, 1), config.jitter
    scale = jax.random.uniform(scale_key, shape, minval=1 - most, maxval=1 + most)
    move = jax.random.uniform(move_key, shape, minval=-most, maxval=most)
    return jnp.clip(scale * cut + move, -1, 1)
