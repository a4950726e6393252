"""Two tiny decoders and a batch of prompts and responses of many lengths."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxmethods.kid.config import DivergenceConfig, ImperfectConfig, KIDConfig
from jaxmethods.kid.loss import Batch
from jaxmethods.kid.model import of_decoder
from jaxmethods.models import decoder
from tests.models.decoder.decoders import random_params

V, P, R = 23, 7, 6
PROMPTS = np.array([7, 3, 5, 1])
RESPONSES = np.array([6, 4, 1, 2])
CONFIG = decoder.DecoderConfig(
    family="llama",
    vocab_size=V,
    width=8,
    mlp_width=16,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=4,
    max_positions=64,
    rotary_dim=4,
)
TEACHER = CONFIG.model_copy(update={"width": 12, "vocab_size": V + 4})


def params_of(config, seed):
    """Large enough that predictions differ from token to token."""
    return random_params(config, seed, scale=0.3)


STUDENT_PARAMS, TEACHER_PARAMS = params_of(CONFIG, 0), params_of(TEACHER, 1)
STUDENT, MODEL = of_decoder(CONFIG), of_decoder(TEACHER, vocabulary=V)


def make_batch(side="left", pad=0, room=(0, 0)):
    """The batch, prompts padded on either side, with further padding if wished."""
    rng = np.random.default_rng(0)
    longest, most = P + room[0], R + room[1]
    prompts, mask = np.full((4, longest), pad), np.zeros((4, longest), int)
    responses = np.full((4, most), pad)
    counted = (np.arange(most) < RESPONSES[:, None]).astype(int)
    for row, (own, new) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        where = slice(longest - own, None) if side == "left" else slice(0, own)
        prompts[row, where] = rng.integers(3, V, own)
        mask[row, where] = 1
        responses[row, :new] = [*rng.integers(3, V, new - 1), 2]
    ends = np.arange(most) == RESPONSES[:, None] - 1
    arrays = (prompts, mask, responses, counted, counted * ~ends)
    return Batch(*(jnp.asarray(array) for array in arrays))


def config(divergence="reverse_kl", **fields):
    """A config, with the fields of imperfect data among the others."""
    own = {name: fields.pop(name) for name in list(fields) if name in ImperfectConfig.model_fields}
    return KIDConfig(
        imperfect=ImperfectConfig(**{"alpha": 0.5} | own),
        divergence=DivergenceConfig(name=divergence),
        **fields,
    )
