r"""Concrete masks: relaxed binary masks that can be learned by gradients.

    m = sigmoid((logit(u) + a) / temperature) / mean(m),    u ~ U(0, 1)

Tang et al. 2023, arXiv 2312.06173 (Concrete subspace learning).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmethods.merging.static.trees import compute_dtype


def concrete_mask(
    uniform: jax.Array, logits: jax.Array, temperature: float = 0.5, rescale: bool = True
) -> jax.Array:
    """A relaxed binary mask, sigmoid((logit(u) + a) / temperature), divided by its mean.

    Args:
        uniform: u in (0, 1), of the logits' shape; `jax.random.uniform(key, shape, minval=tiny)`.
        logits: a, any shape; 0 at the start (Concrete subspace, arXiv 2312.06173).
        temperature: how far the mask is from 0 and 1; toward 0 it is binary.
        rescale: divide by the mean.

    Returns:
        m, in the shape of `logits`, float32 or what is wider.
    """
    dtype = compute_dtype(logits)
    noise = jnp.log(uniform.astype(dtype)) - jnp.log1p(-uniform.astype(dtype))
    mask = jax.nn.sigmoid((noise + logits) / temperature)
    if not rescale:
        return mask
    mean = jnp.mean(mask)
    return mask / jnp.where(mean > 0, mean, 1)
