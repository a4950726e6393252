"""What attention does to a sequence: entropy, rank collapse, sinks.

    residual(X) = |X - 1 mean(X)|_F / |X|_F

falls doubly exponentially with depth in pure attention and slowly with skip connections (Dong,
Cordonnier, Loukas, "Attention is not all you need", 2021). Inputs are arrays that a model returned;
how a model gives them away is `representation.capture`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmethods.numerics.precision import wide


def attention_weights(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(D)) of [..., T, D], [..., T, T]."""
    scores = queries @ jnp.swapaxes(keys, -1, -2) / queries.shape[-1] ** 0.5
    return jax.nn.softmax(scores, axis=-1)


def entropy(weights: jax.Array) -> jax.Array:
    """Mean entropy of the rows of attention matrices [..., T, S], [...]."""
    weights = wide(weights)
    return jnp.mean(-jnp.sum(jax.scipy.special.xlogy(weights, weights), axis=-1), axis=-1)


def rank_residual(tokens: jax.Array) -> jax.Array:
    """|X - mean|_F / |X|_F of tokens [..., T, D], [...]: 0 where all tokens are equal."""
    tokens = wide(tokens)
    off = tokens - jnp.mean(tokens, axis=-2, keepdims=True)
    return jnp.linalg.norm(off, axis=(-2, -1)) / jnp.linalg.norm(tokens, axis=(-2, -1))


def sink_mass(weights: jax.Array, token: int = 0) -> jax.Array:
    """Mean attention that later tokens pay to one token, of [..., T, T], [...]."""
    return jnp.mean(weights[..., token + 1 :, token], axis=-1)


def effective_rank(weights: jax.Array) -> jax.Array:
    """exp of the entropy of the normalized singular values of matrices [..., T, S], [...]."""
    values = jnp.linalg.svd(wide(weights), compute_uv=False)
    share = values / jnp.sum(values, axis=-1, keepdims=True)
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share, share), axis=-1))


def attention_stack(
    tokens: jax.Array, queries: jax.Array, keys: jax.Array, values: jax.Array, skip: bool
) -> tuple[jax.Array, jax.Array]:
    """L layers of single-head attention, the model of the theorem.

    Args:
        tokens: [T, D].
        queries: [L, D, D]; X W_q, as are keys and values.
        keys: [L, D, D].
        values: [L, D, D].
        skip: add the input of every layer to its output.

    Returns:
        tokens behind every layer [L, T, D] and attention matrices [L, T, T].
    """

    def layer(x: jax.Array, own: tuple) -> tuple[jax.Array, tuple]:
        query, key, value = own
        weights = attention_weights(x @ query, x @ key)
        following = weights @ (x @ value) + (x if skip else 0)
        return following, (following, weights)

    _, (after, weights) = jax.lax.scan(layer, tokens, (queries, keys, values))
    return after, weights
