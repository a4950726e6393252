"""Half precision is for storage: sums, squares and factorizations are made in float32 at least.

A float16 number ends at 65504, a bfloat16 counter at 256, and neither has a LAPACK routine.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def wide(x: jax.Array) -> jax.Array:
    """An array in float32, or in its own type where that is wider."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
