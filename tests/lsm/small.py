"""A speech-text model that compiles in a moment."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmethods.lsm import init_connector
from jaxmethods.lsm.config import ConnectorConfig
from jaxmethods.lsm.model import IGNORED, Model, Text
from jaxmethods.models import decoder
from jaxmethods.models.decoder.config import DecoderConfig
from jaxmethods.models.qformer import QFormerConfig
from tests.programs import weights

INPUTS, FRAMES = 6, 60
LANGUAGE = DecoderConfig(
    family="llama",
    vocab_size=17,
    width=8,
    mlp_width=12,
    layers=2,
    heads=2,
    kv_heads=2,
    head_dim=4,
    rotary_dim=4,
    max_positions=128,
)
CONNECTOR = ConnectorConfig(
    qformer=QFormerConfig(width=8, layers=1, heads=2, mlp_width=8, dropout=0.0),
    policy="fixed",
    window=10,
)


def model(policy="fixed"):
    return Model(CONNECTOR.model_copy(update={"policy": policy}), LANGUAGE)


def params():
    return {
        "connector": weights(init_connector, CONNECTOR, INPUTS, LANGUAGE.width),
        "language_model": weights(decoder.init_params, LANGUAGE, seed=1),
    }


def frames(clips, seed=2):
    return jax.random.normal(jax.random.key(seed), (clips, FRAMES, INPUTS))


def text(rows, seed=3):
    """Instructions of different lengths, a tag of two tokens, responses of different lengths."""
    keys = jax.random.split(jax.random.key(seed), 4)
    prefix = jax.random.randint(keys[0], (rows, 5), 3, LANGUAGE.vocab_size)
    suffix = jax.random.randint(keys[1], (rows, 6), 3, LANGUAGE.vocab_size)
    asked = jax.random.randint(keys[2], (rows, 1), 2, 6)
    answered = jax.random.randint(keys[3], (rows, 1), 1, 5)
    there = jnp.arange(6) < 2 + answered
    labels = jnp.where(there & (jnp.arange(6) >= 2), suffix, IGNORED)
    return Text(prefix, jnp.arange(5) < asked, suffix, there, labels)
