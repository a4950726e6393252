r"""Two views of one place are nearer to each other than to other places.

    l_ij = s u_i . v_j,     L = (CE(l, diagonal) + CE(l^T, diagonal)) / 2         u, v of length 1

CLIP (Radford et al. 2021, arXiv 2103.00020) for an image and its text, InfoNCE (arXiv 1807.03748)
for two sensors, seasons or crops (CROMA, SeCo, SkySense). `axis_name` names the axis of a
`shard_map` or `vmap` over which the batch is split: rows stay where they are, columns are gathered,
and gradients flow through the gather.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

LARGEST_SCALE = 100.0


def clip_loss(
    image: jax.Array, text: jax.Array, logit_scale: jax.Array, axis_name: str | None = None
) -> jax.Array:
    """CLIP's loss of paired features.

    Args:
        image: [B, P], of any length.
        text: [B, P].
        logit_scale: s [], a logarithm; exp(s) is at most 100.
        axis_name: over which the batch is split; None: it is whole.

    Returns:
        [] float32 at least, the mean over the whole batch.
    """
    scale = jnp.minimum(jnp.exp(logit_scale), LARGEST_SCALE)
    return _symmetric(image, text, scale, axis_name)


def infonce(
    first: jax.Array, second: jax.Array, temperature: float = 0.07, axis_name: str | None = None
) -> jax.Array:
    """The symmetric InfoNCE loss of paired features.

    Args:
        first: [B, P], of any length.
        second: [B, P].
        temperature: what cosines are divided by.
        axis_name: over which the batch is split; None: it is whole.

    Returns:
        [] float32 at least, the mean over the whole batch.
    """
    return _symmetric(first, second, jnp.asarray(1.0 / temperature), axis_name)


def unit(features: jax.Array) -> jax.Array:
    """x / |x| over the last axis; zeros stay zeros."""
    squares = jnp.sum(jnp.square(features), axis=-1, keepdims=True)
    return features * jax.lax.rsqrt(jnp.maximum(squares, jnp.finfo(features.dtype).tiny))


def _symmetric(
    first: jax.Array, second: jax.Array, scale: jax.Array, axis_name: str | None
) -> jax.Array:
    wide = jnp.promote_types(first.dtype, jnp.float32)
    first, second = unit(first.astype(wide)), unit(second.astype(wide))
    everyone = (first, second)
    rank = 0
    if axis_name is not None:
        everyone = tuple(jax.lax.all_gather(own, axis_name, tiled=True) for own in (first, second))
        rank = jax.lax.axis_index(axis_name)
    labels = rank * len(first) + jnp.arange(len(first))
    entropy = optax.softmax_cross_entropy_with_integer_labels
    forward = entropy(scale * first @ everyone[1].T, labels)
    backward = entropy(scale * second @ everyone[0].T, labels)
    value = (jnp.mean(forward) + jnp.mean(backward)) / 2
    return value if axis_name is None else jax.lax.pmean(value, axis_name)
