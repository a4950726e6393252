r"""A patch embedding for any set of bands, generated from their wavelengths (DOFA).

    e   = sincos(d, 1000 lambda),      e <- e + relu(W_2 relu(W_1 e))          lambda in micrometers
    out = Transformer([weight tokens; e; bias token])                         one post-norm layer
    K   = 0.01 (W_K (out_e + e) + b_K),     b = 0.01 (W_b out_bias + b_b)

Xiong et al. 2024, arXiv 2403.15356, section 3. K [C, p p D] becomes the kernel [D, C, p, p] by
`permute`, as the released checkpoints are used; the first code's `raw_view` reads the same numbers
in another order, which mixes bands, so that reordering them changes the tokens.

The kernel depends on the bands alone: `fixed_bands` generates it once and gives an encoder with a
plain embedding, for training steps and for frozen evaluations alike.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.models.clip.vit import Activation, layer_norm, linear, self_attention
from jaxmethods.models.geovit.config import EncoderConfig
from jaxmethods.models.geovit.positions import sincos
from jaxmethods.models.products import gelu

SCALE = 0.01
HEADS = 4
EPSILON = 1e-5


class _Attention(NamedTuple):
    num_attention_heads: int = HEADS
    hidden_act: Activation = "gelu"
    layer_norm_eps: float = EPSILON


class Generated(NamedTuple):
    """An embedding for given bands."""

    weight: jax.Array
    """[C, p p D], before it is a kernel."""
    bias: jax.Array
    """[D]"""
    codes: jax.Array
    """e [C, d]"""


def generate(params: Any, wavelengths: jax.Array) -> Generated:
    """Kernel and bias for bands of these wavelengths, as they come out of the generator.

    Args:
        params: {"weight_tokens" [n, d], "bias_token" [1, d], "layer", "fc_weight", "fc_bias", "w1",
            "w2"}.
        wavelengths: [C] micrometers.

    Returns:
        The arrays, times 0.01, and the bands' codes.
    """
    tokens = params["weight_tokens"]
    codes = sincos(tokens.shape[-1], 1000.0 * wavelengths).astype(tokens.dtype)
    change = jax.nn.relu(linear(params["w2"], jax.nn.relu(linear(params["w1"], codes))))
    codes = codes + change
    x = jnp.concatenate([tokens, codes, params["bias_token"]])[None]  # [1, n + C + 1, d]
    out = _post_norm_layer(params["layer"], x)[0]
    bands = out[len(tokens) : -1] + codes  # [C, d]
    weight = SCALE * linear(params["fc_weight"], bands)
    return Generated(weight, SCALE * linear(params["fc_bias"], out[-1]), codes)


def kernel(weight: jax.Array, config: EncoderConfig) -> jax.Array:
    """The kernel [D, C, p, p] of generated numbers [C, p p D], in the config's layout."""
    patch, width = config.patch, config.width
    if config.kernel_layout == "raw_view":
        return weight.reshape(width, len(weight), patch, patch)
    return weight.reshape(len(weight), patch, patch, width).transpose(3, 0, 1, 2)


def fixed_bands(
    params: Any, config: EncoderConfig, wavelengths: jax.Array
) -> tuple[Any, EncoderConfig]:
    """The encoder for given bands, with a plain embedding in place of the generator.

    Args:
        params: of an encoder with `embedding: wavelength`.
        config: its config.
        wavelengths: [C] micrometers.

    Returns:
        Parameters and config of an encoder with `embedding: conv` and C channels.
    """
    made = generate(params["patch_embed"], wavelengths)
    plain = {"weight": kernel(made.weight, config), "bias": made.bias}
    fixed = config.model_copy(update={"embedding": "conv", "channels": len(wavelengths)})
    return params | {"patch_embed": plain}, fixed


def init_generator(key: jax.Array, config: EncoderConfig) -> Any:
    """Fresh parameters as DOFA draws them: Xavier maps, biases 0.01, tokens N(0, 0.02)."""
    width, hidden = config.wave_width, config.wave_hidden
    keys = iter(jax.random.split(key, 12))
    xavier = jax.nn.initializers.xavier_uniform()

    def dense(outputs: int, inputs: int) -> dict[str, jax.Array]:
        return {
            "weight": xavier(next(keys), (outputs, inputs)),
            "bias": jnp.full((outputs,), 0.01),
        }

    norm = {"weight": jnp.ones(width), "bias": jnp.zeros(width)}
    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    return {
        "weight_tokens": 0.02 * jax.random.normal(next(keys), (config.wave_tokens, width)),
        "bias_token": 0.02 * jax.random.normal(next(keys), (1, width)),
        "layer": {
            "self_attn": {name: dense(width, width) for name in names},
            "linear1": dense(hidden, width),
            "linear2": dense(width, hidden),
            "norm1": norm,
            "norm2": norm,
        },
        "fc_weight": dense(config.patch**2 * config.width, width),
        "fc_bias": dense(config.width, width),
        "w1": dense(width, width),
        "w2": dense(width, width),
    }


def _post_norm_layer(layer: Any, x: jax.Array) -> jax.Array:
    """PyTorch's `TransformerEncoderLayer` with its norms behind the sums."""
    x = layer_norm(layer["norm1"], x + self_attention(layer["self_attn"], _Attention(), x), EPSILON)
    inner = gelu(linear(layer["linear1"], x))
    return layer_norm(layer["norm2"], x + linear(layer["linear2"], inner), EPSILON)
