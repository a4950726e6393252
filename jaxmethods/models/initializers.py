"""Initial weights that may be drawn for many models at once, on any device.

XLA's CPU runtime runs independent operations of a program side by side on one pool of threads,
and a LAPACK call with a leading axis waits inside that pool for more of its threads: two such
calls on two cores can wait for each other for ever. `orthogonal` therefore factorizes one matrix
after the other on CPU, however often it is mapped; accelerators factorize the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap


def orthogonal(scale: float = 1.0) -> Callable[..., jax.Array]:
    """Uniformly distributed (semi-)orthogonal matrices times `scale` (Saxe et al. 2014).

    Returns `(key, shape, dtype=float32) -> weights`, as Flax's layers take it, with the numbers of
    `jax.nn.initializers.orthogonal`; leading axes of a shape of more than two count as rows.
    """
    draw = jax.nn.initializers.orthogonal(scale)

    def init(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        def one(key: jax.Array) -> jax.Array:
            return draw(key, shape, dtype)

        return jax.lax.platform_dependent(key, cpu=sequential_vmap(one), default=one)

    return init
