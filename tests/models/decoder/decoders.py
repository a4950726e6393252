"""Small random decoders for tests, one config for each family's switches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.models import decoder
from jaxmethods.models.decoder.config import DecoderConfig, RopeScaling
from tests.programs import weights

LLAMA = DecoderConfig(
    family="llama",
    vocab_size=41,
    width=24,
    mlp_width=40,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=8,
    rotary_dim=8,
    max_positions=64,
)
PLAIN = LLAMA.model_copy(update={"kv_heads": 4, "head_dim": 6, "rotary_dim": 6})
BIASED = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}
CONFIGS = {
    "llama": LLAMA,
    "llama biased": LLAMA.model_copy(update=BIASED),
    "llama linear": LLAMA.model_copy(
        update={"rope_scaling": RopeScaling(kind="linear", factor=3), "tied": True}
    ),
    "llama dynamic": LLAMA.model_copy(
        update={"rope_scaling": RopeScaling(kind="dynamic", factor=2), "max_positions": 8}
    ),
    "mistral": LLAMA.model_copy(update={"family": "mistral", "sliding_window": 4}),
    "qwen3": LLAMA.model_copy(update={"family": "qwen3", "qk_norm": True, "norm_eps": 1e-6}),
    "gpt_neox": PLAIN.model_copy(
        update={
            "family": "gpt_neox",
            "rotary_dim": 2,
            "norm": "layer",
            "activation": "gelu",
            "gated": False,
            **BIASED,
        }
    ),
    "opt": PLAIN.model_copy(
        update={
            "family": "opt",
            "rotary_dim": 0,
            "positions": "learned",
            "norm": "layer",
            "activation": "relu",
            "gated": False,
            "tied": True,
            **BIASED,
        }
    ),
    "codegen": PLAIN.model_copy(
        update={
            "family": "codegen",
            "rotary_dim": 4,
            "rotary_pairs": "neighbors",
            "norm": "layer",
            "activation": "gelu_tanh",
            "gated": False,
            "residual": "parallel_one_norm",
            "mlp_bias": True,
            "head_bias": True,
        }
    ),
}


def random_params(config: DecoderConfig, seed: int = 0, scale: float = 0.2):
    """Parameters none of which is zero or one, so that each of them matters."""
    return jax.tree.map(jnp.asarray, weights(decoder.init_params, config, seed=seed, scale=scale))


def random_ids(config: DecoderConfig, rows: int, length: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(3, config.vocab_size, (rows, length)), jnp.int32)
