"""Rotary position embedding (Su et al., "RoFormer", arXiv 2104.09864) and its stretched variants.

Dimension pair j of a query or key at position t turns by the angle t f_j, f_j = theta^(-2j / r),
so that scores depend on differences of positions only.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.models.decoder.config import DecoderConfig, RopeScaling


def rotation(
    config: DecoderConfig,
    positions: jax.Array,
    mask: jax.Array | None = None,
    segments: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """How far the pairs of dimensions turn at each position.

    Args:
        config: how many dimensions turn, and how fast; static.
        positions: [..., T] int.
        mask: [..., T] bool: what is a token. Dynamic frequencies follow the largest position of a
            row's tokens, whatever its padding is said to stand at.
        segments: [..., T] int: a row holds several sequences, each with frequencies of its own.

    Returns:
        Cosine and sine of the angles, float32 [..., T, r / 2] each.
    """
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "dynamic":
        known = positions if mask is None else jnp.where(mask, positions, 0)
        frequencies = _dynamic_frequencies(config, scaling, _reached(known, segments))
    else:
        frequencies = jnp.asarray(inverse_frequencies(config))
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array, config: DecoderConfig) -> jax.Array:
    """Turns the first `rotary_dim` dimensions of every head by the angles of its position.

    Args:
        x: [B, T, H, d].
        cos, sin: [B, T, r / 2].
        config: how many dimensions, and which are pairs; static.

    Returns:
        [B, T, H, d] in the dtype of `x`.
    """
    cos, sin = (angle[..., None, :].astype(x.dtype) for angle in (cos, sin))  # [B, T, 1, r / 2]
    turned, rest = x[..., : config.rotary_dim], x[..., config.rotary_dim :]
    if config.rotary_pairs == "halves":
        first, second = jnp.split(turned, 2, axis=-1)
    else:
        first, second = turned[..., 0::2], turned[..., 1::2]
    first, second = first * cos - second * sin, second * cos + first * sin
    if config.rotary_pairs == "halves":
        turned = jnp.concatenate([first, second], axis=-1)
    else:
        turned = jnp.stack([first, second], axis=-1).reshape(turned.shape)  # [B, T, H, r]
    return jnp.concatenate([turned, rest], axis=-1)


def inverse_frequencies(config: DecoderConfig) -> np.ndarray:
    """f_j, float32 [rotary_dim / 2], for every kind of scaling that depends on nothing else."""
    exponents = np.arange(0, config.rotary_dim, 2, dtype=np.float32) / np.float32(config.rotary_dim)
    frequencies = np.float32(1.0) / np.float32(config.rope_theta) ** exponents
    scaling = config.rope_scaling
    if scaling is None or scaling.kind == "dynamic":
        return frequencies
    if scaling.kind == "linear":
        return frequencies / np.float32(scaling.factor)
    # Waves that fit the original context more than `high` times stay, those that fit it less than
    # `low` times are stretched by the factor, those between by a blend of both.
    turns = scaling.original_max_positions * frequencies / np.float32(2 * np.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    keep = np.clip((turns - low) / (high - low), 0, 1).astype(np.float32)
    return (1 - keep) * frequencies / np.float32(scaling.factor) + keep * frequencies


def _reached(positions: jax.Array, segments: jax.Array | None) -> jax.Array:
    """The largest position of each sequence, [..., 1], or [..., T] where a row has several."""
    if segments is None:
        return jnp.max(positions, axis=-1, keepdims=True, initial=0)
    same = segments[..., :, None] == segments[..., None, :]  # [..., T, T]
    return jnp.max(jnp.where(same, positions[..., None, :], 0), axis=-1, initial=0)


def _dynamic_frequencies(
    config: DecoderConfig, scaling: RopeScaling, reached: jax.Array
) -> jax.Array:
    """f_j [..., 1 or T, r / 2] of each sequence, from the largest position it has reached."""
    longer = jnp.maximum(reached[..., None] + 1, config.max_positions) / config.max_positions
    stretch = scaling.factor * longer - (scaling.factor - 1)
    size = config.rotary_dim
    # A single pair turns by one radian a token with any base.
    theta = config.rope_theta * stretch ** (size / max(size - 2, 1))
    return 1.0 / theta ** (jnp.arange(0, size, 2, dtype=jnp.float32) / size)
