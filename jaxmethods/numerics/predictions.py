"""What classifiers decide, where NaN is never a decision.

`argmax` of NaN is the first of them: a network that diverged would be as right as one that always
says the first class.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

NOTHING = -1
"""What is said where nothing can be: no class."""


def labeled(labels: jax.Array, classes: int) -> jax.Array:
    """Bool like `labels`: which are classes, 0 to C - 1.

    Others, such as -1 of padding and of what nobody has labeled, are none: as an index, -1 would be
    the last class.
    """
    labels = jnp.asarray(labels)
    return (labels >= 0) & (labels < classes)


def chosen(logits: jax.Array) -> jax.Array:
    """The class of the largest of logits [..., C], int32 [...]; `NOTHING` where one is NaN.

    Args:
        logits: [..., C], the first of equal ones is chosen.

    Returns:
        [...] int32, from -1 to C - 1.
    """
    known = ~jnp.isnan(logits).any(-1)
    return jnp.where(known, jnp.argmax(logits, -1), NOTHING).astype(jnp.int32)


def right(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Bool: whether the largest of logits [..., C] is the label's; of NaN, none is the largest."""
    return (chosen(logits) == labels) & (labels != NOTHING)
