"""What classifiers decide, where NaN is never a decision.

`argmax` of NaN is the first of them: a network that diverged would be as right as one that always
says the first class.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def right(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Bool: whether the largest of logits [..., C] is the label's; of NaN, none is the largest."""
    return (jnp.argmax(logits, -1) == labels) & ~jnp.isnan(logits).any(-1)
