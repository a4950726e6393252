"""Rows of a table by number, where a number that the table hasn't is never another row's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def rows(table: jax.Array, numbers: jax.Array, name: str) -> jax.Array:
    """The rows [..., D] of a table [N, D] at integers [...] from 0 to N - 1.

    JAX takes the nearest row for a number past the end, and counts negative ones from the end. Here
    numbers whose values are known are checked; in a transformation (`jit`, `grad`, `vmap`), where
    they aren't, the rows of wrong ones are NaN, and so is all that is computed from them.

    Args:
        name: of the numbers, for the error.

    Raises:
        ValueError: known numbers that the table hasn't.
    """
    if not isinstance(numbers, Tracer):
        known = np.asarray(numbers)
        wrong = known[(known < 0) | (known >= len(table))]
        if wrong.size:
            raise ValueError(f"{name}: expected 0 to {len(table) - 1}, got {wrong.flat[0]}")
    return (
        jnp.asarray(table)
        .at[numbers]
        .get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    )
