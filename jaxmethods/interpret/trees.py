"""Vectors that are pytrees: inner products, random probes, stacks of vectors.

Parameters are never raveled: a leaf keeps its shape and its sharding. A vector has None where the
parameters have what cannot be differentiated (integers, keys, flags), and None is no leaf. A stack
of m vectors is such a tree whose leaves have a leading axis m.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.numerics.precision import power_of_two

Vector: TypeAlias = Any
"""A pytree of floating arrays."""
PRECISE = jax.lax.Precision.HIGHEST


def is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def floats(params: Any) -> Vector:
    """The floating leaves in at least float32, and None in place of the others.

    Second derivatives in half precision have wrong small eigenvalues, hence the wider type.
    """

    def widen(leaf: Any) -> Any:
        if not is_floating(leaf):
            return None
        leaf = jnp.asarray(leaf)
        return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))

    return jax.tree.map(widen, params)


def merge(params: Any, vector: Vector) -> Any:
    """Parameters with the leaves of a vector in place of their own, where it has one."""
    return jax.tree.map(
        lambda new, old: old if new is None else new, vector, params, is_leaf=lambda x: x is None
    )


def size(vector: Vector) -> int:
    """How many numbers a vector has."""
    return sum(leaf.size for leaf in jax.tree.leaves(vector))


def dtype(vector: Vector) -> Any:
    """The type that all leaves are promoted to."""
    return jnp.result_type(*jax.tree.leaves(vector))


def add(a: Vector, b: Vector) -> Vector:
    return jax.tree.map(jnp.add, a, b)


def scale(factor: Any, vector: Vector) -> Vector:
    """Each leaf keeps its type."""
    return jax.tree.map(lambda leaf: (factor * leaf).astype(leaf.dtype), vector)


def axpy(factor: Any, x: Vector, y: Vector) -> Vector:
    """factor x + y, in the types of y."""
    return jax.tree.map(lambda x, y: (factor * x + y).astype(y.dtype), x, y)


def total(tree: Any) -> jax.Array:
    """The sum of all leaves, which have one shape."""
    return reduce(jnp.add, jax.tree.leaves(tree))


def vdot(a: Vector, b: Vector) -> jax.Array:
    """The inner product, []."""
    return total(jax.tree.map(lambda a, b: jnp.vdot(a, b, precision=PRECISE), a, b))


def norm(vector: Vector) -> jax.Array:
    """The length, [], also of vectors whose entries' squares are no numbers of their type.

    The Hessian of a network that is sure of everything is 1e-22: its square is 0 in float32.
    """
    unit = unit_of(vector)
    own = jax.tree.map(lambda leaf: leaf / unit.astype(leaf.dtype), vector)
    return unit * jnp.sqrt(vdot(own, own))


def unit_of(vector: Vector) -> jax.Array:
    """A power of two near the largest entry's magnitude, [] in the vector's type."""
    kind = dtype(vector)
    largest = [jnp.max(jnp.abs(leaf), initial=0).astype(kind) for leaf in jax.tree.leaves(vector)]
    return power_of_two(reduce(jnp.maximum, largest))


def zeros(like: Vector, leading: tuple[int, ...] = ()) -> Vector:
    """A vector, or a stack of them, of zeros."""
    return jax.tree.map(lambda leaf: jnp.zeros(leading + leaf.shape, leaf.dtype), like)


def coefficients(stack: Vector, vector: Vector) -> jax.Array:
    """Inner products of m stacked vectors with one, [m]."""

    def leaf(rows: jax.Array, own: jax.Array) -> jax.Array:
        # [m, ...] x [...] -> [m]: one matrix-vector product, whatever the leaf's shape.
        return jnp.tensordot(rows, own, axes=own.ndim, precision=PRECISE)

    return total(jax.tree.map(leaf, stack, vector))


def combine(weights: jax.Array, stack: Vector) -> Vector:
    """The sum of m stacked vectors with weights [m] or [k, m], the latter a stack of k."""
    return jax.tree.map(
        lambda rows: jnp.tensordot(weights.astype(rows.dtype), rows, axes=1, precision=PRECISE),
        stack,
    )


def orthogonalize(vector: Vector, stack: Vector) -> Vector:
    """The part of a vector that is orthogonal to orthonormal (or zero) stacked vectors.

    Two passes of Gram-Schmidt: the second removes what the first left by rounding ("twice is
    enough", Parlett 1980).
    """
    for _ in range(2):
        along = combine(coefficients(stack, vector), stack)
        vector = jax.tree.map(jnp.subtract, vector, along)
    return vector


def random_like(key: jax.Array, like: Vector, kind: str = "rademacher") -> Vector:
    """Independent entries of mean 0 and variance 1: signs ("rademacher") or "normal" numbers."""
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, max(len(leaves), 1))

    def draw(key: jax.Array, leaf: jax.Array) -> jax.Array:
        if kind == "rademacher":
            return _signs(key, leaf.shape, leaf.dtype)
        return jax.random.normal(key, leaf.shape, leaf.dtype)

    return structure.unflatten([draw(key, leaf) for key, leaf in zip(keys, leaves, strict=False)])


def _signs(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Random signs, of which a random word gives 32.

    A word per entry, as `jax.random.rademacher` takes it, costs as much as a fifth of a small
    network's product. Words lie along the last axis, so that the others may be sharded.
    """
    *leading, last = shape or (1,)
    words = jax.random.bits(key, (*leading, -(-last // 32)), jnp.uint32)
    bits = words[..., None] >> jnp.arange(32, dtype=jnp.uint32) & 1  # [..., last / 32, 32]
    bits = bits.reshape(*leading, -1)[..., :last].reshape(shape)
    return 2 * bits.astype(dtype) - 1


def ravel(vector: Vector, leading: int = 0) -> jax.Array:
    """All entries as one array [..., P], for small problems only; `leading` axes are kept."""
    rows = [leaf.reshape(*leaf.shape[:leading], -1) for leaf in jax.tree.leaves(vector)]
    return jnp.concatenate(rows, axis=-1)


def unravel(flat: jax.Array, like: Vector) -> Vector:
    """The vector shaped like another whose entries `ravel` joins to `flat` [P]."""
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([leaf.size for leaf in leaves])
    parts = jnp.split(flat, ends[:-1])
    pairs = zip(parts, leaves, strict=True)
    return structure.unflatten([part.reshape(own.shape).astype(own.dtype) for part, own in pairs])
