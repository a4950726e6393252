"""Minibatches of samples that are at hand as a whole."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def shuffled_minibatches(key: jax.Array, samples: Any, count: int, shares: int = 1) -> Any:
    """Splits M samples at random into [count, M // count, ...]; a remainder is left out.

    With several `shares` the samples, in as many equal parts, are shuffled within each part.

    Args:
        key: [] typed random key.
        samples: a pytree of arrays [M, ...].
        count: how many minibatches; static.
        shares: parts of the samples that are shuffled apart; static.

    Returns:
        The samples with leaves [count, M // count, ...].
    """
    length = jax.tree.leaves(samples)[0].shape[0] // shares
    size = length // count
    keys = jax.random.split(key, shares) if shares > 1 else key[None]
    order = jax.vmap(lambda key: jax.random.permutation(key, length)[: count * size])(keys)

    def split(x: jax.Array) -> jax.Array:
        x = jax.vmap(lambda x, order: x[order])(x.reshape(shares, length, *x.shape[1:]), order)
        x = x.reshape(shares, count, size, *x.shape[2:])  # [shares, count, size, ...]
        # [count, shares size, ...]
        return jnp.swapaxes(x, 0, 1).reshape(count, shares * size, *x.shape[3:])

    return jax.tree.map(split, samples)
