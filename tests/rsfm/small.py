"""Small encoders, images and autoencoders that tests share."""

from __future__ import annotations

import jax.numpy as jnp

from jaxmethods.models import geovit
from jaxmethods.rsfm.config import MAEConfig
from jaxmethods.rsfm.pretraining import mae
from tests import programs
from tests.programs import weights

TINY = geovit.EncoderConfig(width=16, depth=1, heads=2, patch=4, image_size=16, channels=3)
MAE = MAEConfig(encoder=TINY, decoder_width=16, decoder_depth=1, decoder_heads=2)


def draw(seed, *shape):
    return jnp.asarray(programs.normal(seed, *shape), jnp.float32)


def uniform(seed, *shape):
    return jnp.asarray(programs.uniform(seed, 0, 1, *shape), jnp.float32)


def encoder_params(config):
    """Random, with biases and norms that are not those of a fresh model."""
    return weights(geovit.init, config)


def mae_params(config):
    return weights(mae.init, config)
