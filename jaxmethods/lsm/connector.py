"""From encoder frames to speech tokens of a language model: norm, windows, Q-Former, projection.

    tokens = W QFormer(windows(LN(encoded))) + b,    [B, L Q, D]

A window becomes as many tokens as there are queries (one). The mask says which of them hold sound
of the clip; with `mask_padding` (the default, but for the policy `reference`) others are not seen.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.lsm.config import ConnectorConfig
from jaxmethods.lsm.windows import Windows, cut_windows
from jaxmethods.models import qformer
from jaxmethods.models.decoder.layer import Params, dense
from jaxmethods.models.norms import layer_norm


class Speech(NamedTuple):
    """Clips as tokens."""

    tokens: jax.Array
    """[B, N, D], N = L Q."""
    mask: jax.Array
    """[B, N] bool: which of them a language model may see."""


def connect(
    params: Params,
    config: ConnectorConfig,
    encoded: jax.Array,
    lengths: jax.Array,
    key: jax.Array | None = None,
) -> Speech:
    """Speech tokens of clips.

    Args:
        params: see `init_connector`.
        config: sizes and policy; static.
        encoded: [B, T, C] frames of the encoder; for the policy `reference`, T is that of the
            longest clip.
        lengths: [B] int: frames of each clip.
        key: for dropout; None: no dropout.

    Returns:
        Tokens and their mask.
    """
    windows = cut(params, config, encoded, lengths)
    batch, number, kernel, width = windows.frames.shape
    flat = windows.frames.reshape(batch * number, kernel, width)  # [B L, k, C]
    mask = None if windows.frame_mask is None else windows.frame_mask.reshape(-1, kernel)
    states = qformer.read(params["qformer"], config.qformer, flat, mask, key=key).states
    tokens = dense(params["project"], states)  # [B L, Q, D]
    tokens = tokens.reshape(batch, number * config.qformer.queries, -1)  # [B, L Q, D]
    seen = windows.mask if config.masks_padding else jnp.ones_like(windows.mask)
    return Speech(tokens, jnp.repeat(seen, config.qformer.queries, axis=1))


def cut(params: Params, config: ConnectorConfig, encoded: jax.Array, lengths: jax.Array) -> Windows:
    """Normalized frames in windows.

    Args:
        params: see `init_connector`.
        config: sizes and policy; static.
        encoded: [B, T, C].
        lengths: [B] int.

    Returns:
        Frames [B, L, k, C] and their masks.
    """
    normed = layer_norm(params["norm"], encoded, config.norm_eps)
    return cut_windows(normed, lengths, config.policy, seconds=config.seconds, window=config.window)


def init_connector(
    key: jax.Array, config: ConnectorConfig, inputs: int, outputs: int, dtype: Any = jnp.float32
) -> Params:
    """Random parameters: the Q-Former's, and a projection uniform in +-1 / sqrt(its inputs).

    Args:
        key: typed random key [].
        config: sizes; static.
        inputs: C, the encoder's width.
        outputs: D, the language model's width.
        dtype: of the parameters.

    Returns:
        `norm`, `qformer`, `project`.
    """
    own, kernel_key, bias_key = jax.random.split(key, 3)
    width = config.qformer.width
    bound = width**-0.5
    return {
        "norm": {"scale": jnp.ones(inputs, dtype), "bias": jnp.zeros(inputs, dtype)},
        "qformer": qformer.init(own, config.qformer, inputs, dtype),
        "project": {
            "kernel": jax.random.uniform(kernel_key, (width, outputs), dtype, -bound, bound),
            "bias": jax.random.uniform(bias_key, (outputs,), dtype, -bound, bound),
        },
    }
