"""Small encoders, images and autoencoders that tests share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.models import geovit
from jaxmethods.rsfm.config import MAEConfig
from jaxmethods.rsfm.pretraining import mae
from tests.programs import once

TINY = geovit.EncoderConfig(width=16, depth=1, heads=2, patch=4, image_size=16, channels=3)
MAE = MAEConfig(encoder=TINY, decoder_width=16, decoder_depth=1, decoder_heads=2)


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def uniform(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).random(shape), jnp.float32)


@once
def encoder_params(config):
    """Random, with biases and norms that are not those of a fresh model."""
    return perturbed(geovit.init(jax.random.key(0), config))


@once
def mae_params(config):
    return perturbed(mae.init(jax.random.key(0), config))


def perturbed(tree):
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, moved)
