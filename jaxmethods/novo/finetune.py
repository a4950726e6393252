"""The fine-tuning variant: a small head on all heads' norms, trained with the encoder.

    logit_c = w . dropout(gelu(W dropout(n_c) + b)) + b',    loss = cross-entropy over candidates

where n_c [HL] are the norms of every attention head of every layer at the first token of
"question [SEP] candidate" (arXiv 2410.08970, the variant for encoders). The norms may be computed
beforehand, or by `differentiable_norms` inside the loss: then gradients flow into the encoder.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmethods.models.products import gelu

Params = dict[str, Any]


def init_head(key: jax.Array, heads: int, width: int) -> Params:
    """Parameters for norms of `heads` attention heads and a hidden layer of `width`."""
    keys = jax.random.split(key)
    draw = jax.nn.initializers.normal(0.02, jnp.float32)
    return {
        "hidden": {"kernel": draw(keys[0], (heads, width)), "bias": jnp.zeros(width, jnp.float32)},
        "out": {"kernel": draw(keys[1], (width, 1)), "bias": jnp.zeros(1, jnp.float32)},
    }


def differentiable_norms(head_outputs: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Norms [L, ..., H] of head outputs [L, ..., H, d], flattened to [..., L H].

    eps stands inside the root: at 0 the norm has no gradient, and some heads do output 0.
    """
    wide = head_outputs.astype(jnp.promote_types(head_outputs.dtype, jnp.float32))
    squares = jnp.sum(jnp.square(wide), axis=-1)
    norms = jnp.moveaxis(jnp.sqrt(squares + eps), 0, -2)  # [..., L, H]
    return norms.reshape(*norms.shape[:-2], -1)  # [..., L H]


def candidate_logits(
    params: Params,
    norms: jax.Array,
    *,
    key: jax.Array | None = None,
    dropout: tuple[float, float] = (0.0, 0.0),
) -> jax.Array:
    """Logits of candidates.

    Args:
        params: of the head.
        norms: [..., C, HL].
        key: of dropout; None: none (evaluation).
        dropout: rates before the hidden and before the last layer.

    Returns:
        [..., C].
    """
    keys = (None, None) if key is None else jax.random.split(key)
    x = _dropped(norms, keys[0], dropout[0])
    x = gelu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    x = _dropped(x, keys[1], dropout[1])
    return (x @ params["out"]["kernel"] + params["out"]["bias"])[..., 0]


def candidate_loss(logits: jax.Array, mask: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy over the candidates there are: [n, C], bool [n, C], int [n]."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    masked = jnp.where(mask, logits, -jnp.inf)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(masked, labels))


def _dropped(x: jax.Array, key: jax.Array | None, rate: float) -> jax.Array:
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)
