"""Work that is done only where it is asked for, also under `vmap`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Tree = TypeVar("Tree")


def when(asked: jax.Array, compute: Callable[[], Tree], otherwise: Tree) -> Tree:
    """What `compute` gives where `asked` is true, else `otherwise`.

    `lax.cond` of a predicate that is mapped by `vmap` runs both branches. This is a loop of at most
    one turn, which is not begun where no mapped element asks. Not to be differentiated.

    Args:
        asked: [] bool.
        compute: () -> arrays like those of `otherwise`; may close over traced arrays.
        otherwise: a tree of arrays.

    Returns:
        The arrays of one of the two.
    """

    def turn(carry: tuple[jax.Array, Tree]) -> tuple[jax.Array, Tree]:
        found = jax.tree.map(lambda new, old: new.astype(old.dtype), compute(), carry[1])
        return jnp.zeros_like(carry[0]), found

    otherwise = jax.tree.map(jnp.asarray, otherwise)
    return lax.while_loop(lambda carry: carry[0], turn, (jnp.asarray(asked, bool), otherwise))[1]
