"""What layers of rows are made of, as XLA runs it fast on CPU.

With two leading axes XLA's CPU compiler transposes the rows before it makes the gradient of the
matrix, which costs as much as the product; with one axis of rows it doesn't. Its `erfc` takes four
times as long as its `erf`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def rows_product(x: jax.Array, kernel: jax.Array, dtype: Any = None) -> jax.Array:
    """x @ kernel as one product of two matrices.

    Args:
        x: [..., n].
        kernel: [n, m].
        dtype: of the sums and the output; None: what the product has.

    Returns:
        [..., m].
    """
    *leading, inputs = x.shape
    # Said, not inferred: an array without rows has no size to infer it from.
    rows = x.reshape(math.prod(leading), inputs)
    product = jnp.matmul(rows, kernel, preferred_element_type=dtype)
    return product.reshape(*leading, kernel.shape[1])


def gelu(x: jax.Array) -> jax.Array:
    """x / 2 (1 + erf(x / sqrt 2)), as PyTorch computes it, in float32 at least.

    Args:
        x: [...].

    Returns:
        [...] in the type of `x`; the error below -2 is absolute (1e-6 in float32), not relative.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * wide * (1 + lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def keep_products(body: Callable[..., Any]) -> Callable[..., Any]:
    """A layer whose gradient keeps products of matrices and makes everything between them anew.

    A loop over layers copies whatever it keeps into stacks. Left to itself JAX keeps weights turned
    around, every step of a norm and of an activation, the same rows once for each of their readers:
    four times what the products need, and on CPU a third of the time of a training step.

    Args:
        body: of `lax.scan` over layers.

    Returns:
        The same function.
    """
    policy = jax.checkpoint_policies.dots_saveable
    return jax.checkpoint(body, prevent_cse=False, policy=policy)
