"""Which patches are hidden: the smallest of uniform noise are kept, as in MAE (arXiv 2111.06377).

A mask follows from its noise, so that the same noise gives the same mask in any implementation.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Masks(NamedTuple):
    """What is kept of the tokens of every image."""

    keep: jax.Array
    """[B, K] indices of kept tokens, in the order in which they are encoded."""
    place: jax.Array
    """[B, T] where a token stands among the shuffled ones: the first K are kept."""
    hidden: jax.Array
    """[B, T] float32, 1 where a token is hidden."""


def random_masks(noise: jax.Array, ratio: float) -> Masks:
    """Keeps the tokens with the smallest noise.

    Args:
        noise: [B, T].
        ratio: r, the share that is hidden: int(T (1 - r)) are kept; static.

    Returns:
        The masks.
    """
    kept = count_kept(noise.shape[1], ratio)
    order = jnp.argsort(noise, axis=1)
    place = jnp.argsort(order, axis=1)
    return Masks(order[:, :kept], place, (place >= kept).astype(jnp.float32))


def count_kept(tokens: int, ratio: float) -> int:
    """int(T (1 - r)): how many of T tokens are kept."""
    return int(tokens * (1 - ratio))


def repeated(masks: Masks, copies: int) -> Masks:
    """The same mask for several groups of bands or frames, whose tokens stand one after another.

    Args:
        masks: of the L tokens of one of them.
        copies: G; static.

    Returns:
        Masks of G L tokens.
    """
    kept, length = masks.keep.shape[1], masks.place.shape[1]
    steps = jnp.arange(copies)[:, None]

    def spread(ids: jax.Array, step: int) -> jax.Array:
        own = ids[:, None] + step * steps  # [B, G, n]
        return own.reshape(len(ids), -1)

    hidden = jnp.tile(masks.hidden, (1, copies))
    within = spread(jnp.minimum(masks.place, kept - 1), kept)
    # Behind all kept ones: which place a hidden token has there doesn't matter.
    place = jnp.where(hidden > 0, copies * kept, within)
    return Masks(spread(masks.keep, length), place, hidden)


def fill(tokens: jax.Array, mask_token: jax.Array, masks: Masks) -> jax.Array:
    """Puts kept tokens back in their places and the mask token where one is hidden.

    Args:
        tokens: [B, K, D].
        mask_token: [D].
        masks: of T tokens.

    Returns:
        [B, T, D].
    """
    ids = jnp.minimum(masks.place, tokens.shape[1] - 1)
    own = jnp.take_along_axis(tokens, ids[..., None], axis=1)
    return jnp.where(masks.hidden[..., None] > 0, mask_token.astype(tokens.dtype), own)
