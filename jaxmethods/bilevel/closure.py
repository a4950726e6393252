"""Closed-over values as arguments, and the differentiable part of a pytree.

A function with its own derivative rule sees derivatives of its arguments only. What the user's loss
closes over would be lost there, or be an error; so it is made an argument first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun


def hoist(function: Callable, *examples: Any) -> tuple[Callable, list[jax.Array]]:
    """Traces a function once and takes out of it every array that it closes over.

    Args:
        function: pure; returns a pytree of arrays.
        examples: its arguments, or their shapes and dtypes.

    Returns:
        `hoisted(closed, *arguments)`, and what `closed` is now.
    """
    # JAX keeps traces of a function it has seen, with the arrays it closed over then.
    traced, shape = jax.make_jaxpr(lambda *arguments: function(*arguments), return_shape=True)(
        *examples
    )
    treedef = jax.tree.structure(shape)

    def hoisted(closed: Sequence[jax.Array], *arguments: Any) -> Any:
        run = jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, list(closed)))
        return jax.tree.unflatten(treedef, run(*jax.tree.leaves(arguments)))

    return hoisted, traced.consts


def partition(tree: Any, wanted: Any = None) -> tuple[Any, Any]:
    """Splits a pytree into its floating leaves and the rest, each with None for the other's.

    Args:
        tree: any pytree of arrays.
        wanted: a bool for every leaf; those that are not wanted go to the rest. None: all are.
    """
    wanted = jax.tree.map(lambda _: True, tree) if wanted is None else wanted
    chosen = jax.tree.map(lambda leaf, want: want and is_float(leaf), tree, wanted)
    floats = jax.tree.map(lambda leaf, yes: leaf if yes else None, tree, chosen)
    rest = jax.tree.map(lambda leaf, yes: None if yes else leaf, tree, chosen)
    return floats, rest


def combine(floats: Any, rest: Any) -> Any:
    """The pytree that `partition` split."""
    return jax.tree.map(
        lambda own, other: other if own is None else own,
        floats,
        rest,
        is_leaf=lambda node: node is None,
    )


def is_float(leaf: Any) -> bool:
    """Whether an array carries derivatives."""
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def at_least_single(leaf: Any) -> Any:
    """The type to sum in: float32 for half precision, an array's own otherwise."""
    return jnp.promote_types(leaf.dtype, jnp.float32)


def typed_as(like: Any, tree: Any) -> Any:
    """A pytree in the types of another."""
    return jax.tree.map(lambda own, leaf: leaf.astype(own.dtype), like, tree)
