"""Which episodes are sound: nothing in them is NaN or infinite."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def finite(tree: Any, batch_axes: int = 1) -> jax.Array:
    """Whether all numbers in the leaves [E, ...] of `tree` are finite, [E] bool.

    `batch_axes` leading axes are kept; with 0 the answer is one for the whole tree. Leaves of
    integers, flags and random keys are finite. A tree without leaves is, as a [] bool.
    """
    sound = jnp.ones((), bool)
    for leaf in jax.tree.leaves(tree):
        leaf = jnp.asarray(leaf)
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            axes = tuple(range(batch_axes, leaf.ndim))
            sound = sound & jnp.all(jnp.isfinite(leaf), axis=axes)
    return sound
