"""Which leaves of an optimizer's state are made of parameters and gradients, and which are not.

Momentum is; a learning rate or a decaying factor that the state merely carries is not, and what it
was at the first step is what the outer variable made it. The difference decides what a truncated
gradient takes for a constant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxmethods.bilevel.closure import is_float


def learned_leaves(update: Callable, params: Any, opt_state: Any, hyper: Any) -> Any:
    """Whether a leaf of the state depends, differentiably, on parameters or gradients.

    Forward derivatives tell: what has none in the gradient, the parameters and the leaves that are
    known to depend on them, is free of them. A few abstract evaluations; nothing is computed.

    Args:
        update: (gradient, opt_state, params, hyper) -> (params, opt_state).
        params, opt_state, hyper: its arguments.

    Returns:
        A bool for every leaf, in the structure of `opt_state`.
    """
    leaves, treedef = jax.tree.flatten(opt_state)
    learned = [False] * len(leaves)
    while True:
        reached = _reached(update, params, opt_state, hyper, learned)
        after = [before or now for before, now in zip(learned, reached, strict=True)]
        if after == learned:
            return jax.tree.unflatten(treedef, learned)
        learned = after


def _reached(
    update: Callable, params: Any, opt_state: Any, hyper: Any, learned: list[bool]
) -> list[bool]:
    """The leaves of the next state that parameters, gradients or learned leaves reach."""
    reached = [False] * len(learned)  # the witness is not called where no leaf is reached

    @jax.custom_jvp
    def witness(leaves: list[jax.Array]) -> list[jax.Array]:
        return leaves

    def note(primals: tuple, tangents: tuple) -> tuple:
        reached[:] = [not isinstance(tangent, SymbolicZero) for tangent in tangents[0]]
        return primals[0], tangents[0]

    witness.defjvp(note, symbolic_zeros=True)

    def abstract(params: Any, opt_state: Any, hyper: Any) -> Any:
        leaves, treedef = jax.tree.flatten(opt_state)
        moving = [leaf for leaf, yes in zip(leaves, learned, strict=True) if yes and is_float(leaf)]

        def after(gradient: Any, params: Any, moving: list[jax.Array]) -> list[jax.Array]:
            given = iter(moving)
            mixed = [
                next(given) if yes and is_float(leaf) else leaf
                for leaf, yes in zip(leaves, learned, strict=True)
            ]
            _, state = update(gradient, jax.tree.unflatten(treedef, mixed), params, hyper)
            return witness(jax.tree.leaves(state))

        primals = (params, params, moving)
        return jax.jvp(after, primals, jax.tree.map(jnp.ones_like, primals))[0]

    jax.eval_shape(abstract, params, opt_state, hyper)
    return reached
