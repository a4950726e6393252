"""Layer norm with statistics in float32, whatever the computation's type."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax


def layer_norm(params: Mapping[str, jax.Array], x: jax.Array, epsilon: float) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis.

    In half precision an epsilon such as BERT's 1e-12 would vanish, and constant rows would be NaN.

    Args:
        params: "scale" and "bias", [D].
        x: [..., D].
        epsilon: added to the variance.

    Returns:
        [..., D] in the type of `x`.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    wide = wide * lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
    return (wide * params["scale"] + params["bias"]).astype(x.dtype)
