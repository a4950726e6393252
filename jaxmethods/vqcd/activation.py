r"""Selective weights activation: every task owns a random share of the weights.

    W_i = W * M_i,    M_i = (owner == i),    assembled W = sum_i M_i * W_{i Omega}

The loss sees W_i, so that its gradient is exactly zero off the mask; the update is masked as well,
or the optimizer's momentum would go on moving what earlier tasks own. An owner tree is like the
parameters, int8, -1 where a weight is free, None where a leaf is not shared out.

Hu et al., VQ-CD, arXiv 2410.15698, sections 3.2 and A.7, appendix B.7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmethods.layout import path_name
from jaxmethods.numerics.keys import each_named, named
from jaxmethods.numerics.precision import whole_part
from jaxmethods.vqcd.types import Params

FREE = -1


def _none(x: Any) -> bool:
    return x is None


def draw_owners(
    key: jax.Array,
    params: Params,
    tasks: int,
    shared_out: Callable[[str], bool] = lambda name: True,
    shares: Sequence[float] = (),
) -> Params:
    """Deals every weight to a task, by a permutation of its own for every array.

    Entry pi(r) of an array of n is task i's iff floor(n i / I) <= r < floor(n (i + 1) / I), so that
    counts differ by one at most.

    Args:
        key: [] typed key.
        params: the arrays; only their shapes count.
        tasks: I.
        shared_out: whether the leaf of this name ("network/mid/res0/...") is shared out; static.
        shares: every task's share; empty: 1/I each. What is left over is free.

    Returns:
        Like `params`: int8 owners, None where a leaf is not shared out.

    Raises:
        ValueError: shares that are not one a task, or sum to more than 1.
    """
    if shares and (len(shares) != tasks or sum(shares) > 1 + 1e-9):
        raise ValueError(
            f"shares: expected {tasks} with a sum of at most 1, got {len(shares)} with "
            f"{sum(shares):.4g}"
        )

    def in_order(size: int) -> np.ndarray:
        labels = np.full(size, FREE, np.int8)
        bounds = [size * task // tasks for task in range(tasks + 1)]
        if shares:
            # The small number keeps ten shares of 0.1 from leaving a weight out.
            ends = size * np.cumsum((0.0, *shares)) + 1e-6
            bounds = [int(end) for end in np.minimum(ends, size)]
        for task in range(tasks):
            labels[bounds[task] : bounds[task + 1]] = task
        return labels

    # Arrays of one size are dealt together: sorts take long to compile.
    dealt: dict[str, jax.Array] = {}
    sizes: dict[int, list[str]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if shared_out(name := path_name(path)):
            sizes.setdefault(leaf.size, []).append(name)
    for size, names in sizes.items():
        permute = jax.vmap(jax.random.permutation, (0, None))
        owners = permute(each_named(key, names), jnp.asarray(in_order(size)))
        dealt |= dict(zip(names, owners, strict=True))

    def owner(path: Any, leaf: jax.Array) -> jax.Array | None:
        found = dealt.get(path_name(path))
        return None if found is None else found.reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(owner, params)


def apply_mask(
    params: Params, owner: Params, task: jax.Array | int, earlier: bool = False
) -> Params:
    """W * M_i: zero where a weight is another's.

    Args:
        params: weights, gradients or updates.
        owner: owners like them; leaves without one stay as they are.
        task: [] may be traced.
        earlier: the weights of earlier tasks stay, too; static.

    Returns:
        Like `params`; the gradient is exactly 0 where the mask is.
    """

    def mask(own: jax.Array | None, leaf: jax.Array) -> jax.Array:
        if own is None:
            return leaf
        seen = (own >= 0) & (own <= task) if earlier else own == task
        return jnp.where(seen, leaf, 0)

    return jax.tree.map(mask, owner, params, is_leaf=_none)


def select(owner: Params, task: jax.Array | int, new: Params, old: Params) -> Params:
    """Replaces what is one task's, bit for bit.

    Args:
        owner: owners.
        task: [] may be traced.
        new: like the owners; leaves without owner are all taken from it.
        old: what others keep.

    Returns:
        where(owner == task, new, old).
    """

    def choose(own: jax.Array | None, new: jax.Array, old: jax.Array) -> jax.Array:
        return new if own is None else jnp.where(own == task, new, old)

    return jax.tree.map(choose, owner, new, old, is_leaf=_none)


def masked_update(
    optimizer: optax.GradientTransformation, owner: Params, task: jax.Array | int
) -> optax.GradientTransformation:
    """An optimizer that moves the weights of one task only, bit for bit.

    Start it anew (`init`) for every task: the moments of one are nothing to the next.

    Args:
        optimizer: any.
        owner: owners like the parameters.
        task: [] whose weights move; may be traced.

    Returns:
        The transformation; updates are exactly 0 where `owner` is another task's or free.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = optimizer.update(updates, state, params)
        return apply_mask(updates, owner, task), state

    return optax.GradientTransformation(optimizer.init, update)


def assemble(checkpoints: Sequence[Params], owner: Params) -> Params:
    """sum_i M_i * W_i, bit for bit: of every weight the value that its owner left.

    Args:
        checkpoints: the weights after task 0, 1, ..., in order.
        owner: owners like them. Free weights, and leaves without owner, are the last one's.

    Returns:
        One tree.
    """
    assembled = checkpoints[-1]
    for task, checkpoint in enumerate(checkpoints[:-1]):
        found = select(owner, task, checkpoint, assembled)
        assembled = jax.tree.map(
            lambda own, found, last: last if own is None else found,
            owner,
            found,
            assembled,
            is_leaf=_none,
        )
    return assembled


def prune(params: Params, owner: Params, threshold: float) -> Params:
    """Owners with the weights of magnitude below `threshold` released."""

    def release(own: jax.Array | None, leaf: jax.Array) -> jax.Array | None:
        return None if own is None else jnp.where(jnp.abs(leaf) < threshold, FREE, own)

    return jax.tree.map(release, owner, params, is_leaf=_none)


def claim(key: jax.Array, owner: Params, task: int, share: float) -> Params:
    """Gives a new task a random part of what is free.

    Args:
        key: [] typed key.
        owner: owners.
        task: who gets them.
        share: of every array's entries; where fewer are free, all of these.

    Returns:
        Owners with floor(share n) entries more for the task in an array of n.
    """

    def take(path: Any, own: jax.Array | None) -> jax.Array | None:
        if own is None:
            return None
        wanted = whole_part(share, own.size)
        drawn = jax.random.uniform(named(key, path_name(path)), own.shape)
        order = jnp.argsort(jnp.where(own == FREE, drawn, 2.0).reshape(-1))  # [n], free ones first
        rank = jnp.zeros(own.size, jnp.int32).at[order].set(jnp.arange(own.size))
        mine = (rank.reshape(own.shape) < wanted) & (own == FREE)
        return jnp.where(mine, jnp.int8(task), own)

    return jax.tree_util.tree_map_with_path(take, owner, is_leaf=_none)


def widen(old: Params, new: Params) -> Params:
    """Arrays `new` with the smaller arrays `old` in their corners, to make room for more tasks.

    Earlier tasks keep their own, narrower network: `narrow` gives it back, bit for bit.

    Args:
        old: parameters or owners of the narrow network.
        new: parameters of the wide one; owners of the wide one with everything free.

    Returns:
        Like `new`.

    Raises:
        ValueError: an old array is larger than the new one.
    """

    def embed(path: Any, small: jax.Array | None, large: jax.Array | None) -> jax.Array | None:
        if small is None or large is None:
            return large
        if any(a > b for a, b in zip(small.shape, large.shape, strict=True)):
            raise ValueError(
                f"{path_name(path)}: expected at most shape {large.shape}, got {small.shape}"
            )
        return large.at[tuple(slice(size) for size in small.shape)].set(small)

    return jax.tree_util.tree_map_with_path(embed, old, new, is_leaf=_none)


def narrow(wide: Params, shapes: Params) -> Params:
    """The corners of `wide` with the shapes of the arrays (or `ShapeDtypeStruct`) in `shapes`."""

    def corner(large: jax.Array | None, small: Any) -> jax.Array | None:
        return None if large is None else large[tuple(slice(size) for size in small.shape)]

    return jax.tree.map(corner, wide, shapes, is_leaf=_none)


def owned_counts(owner: Params, tasks: int) -> Params:
    """How many entries every task [I] owns in each array that is shared out."""

    def count(own: jax.Array) -> jax.Array:
        return (own.reshape(-1) == jnp.arange(tasks)[:, None]).sum(-1)  # [I, n] -> [I]

    return jax.tree.map(count, owner)
