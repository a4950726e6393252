r"""Trees of parameters and what every merge is made of.

Experts theta_1..theta_T of one base theta_0 are one tree with a leading task axis T ("stacked").
A merge gives every expert a weight w_t per tensor or per entry,

    theta = theta_0 + sum_t w_t tau_t = (1 - sum_t w_t) theta_0 + sum_t w_t theta_t,
    tau_t = theta_t - theta_0                                               (task vector)

and `combine` computes the second form: weights of zero give the base and a one-hot weight gives
that expert bit for bit, which the first form does only up to the rounding of the subtraction. What
has the weight zero has no part (`scaled`), whatever it holds.

Arithmetic is in float32 at least; results have each leaf's own dtype. Integer and boolean leaves
(position ids, counters) are the base's: they are never merged.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.custom_derivatives import SymbolicZero

from jaxmethods.layout import Rule
from jaxmethods.numerics.compiled import compiled

Tree: TypeAlias = Any
"""A pytree of arrays: Flax, Haiku, plain dictionaries, anything."""
STACK_RULES = (Rule("", ("fsdp",)),)
"""How a stack lives on several devices: experts over `fsdp`."""
Coefficients: TypeAlias = Any
"""float, [] or [T] for all leaves; or a tree like the base with such a leaf each, whose [T, ...]
may go on with leading axes of the leaf itself (layers)."""


def stack_trees(trees: Sequence[Tree], names: Sequence[str] | None = None) -> Tree:
    """Stacks trees of one structure along a new leading axis T.

    Args:
        trees: T trees with equal structure and shapes; dtypes may differ and are promoted.
        names: what errors call them; by default "expert 0", ...

    Returns:
        A tree with leaves [T, ...].

    Raises:
        ValueError: there are none, or a leaf is missing, extra or of another shape (named).
    """
    if not trees:
        raise ValueError("trees: expected at least one")
    names = names or [f"expert {index}" for index in range(len(trees))]
    for name, tree in zip(names[1:], trees[1:], strict=True):
        check_same_structure(trees[0], tree, names[0], name)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def check_same_structure(one: Tree, other: Tree, one_name: str, other_name: str) -> None:
    """Refuses trees that differ in leaves or their shapes.

    Args:
        one, other: the trees.
        one_name, other_name: what the message calls them.

    Raises:
        ValueError: names the leaves that only one tree has, or that differ in shape.
    """
    shapes, others = _shapes(one), _shapes(other)
    for here, there, name in [(shapes, others, other_name), (others, shapes, one_name)]:
        missing = sorted(here.keys() - there.keys())
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise ValueError(f"{name}: has no leaf {', '.join(map(repr, missing[:3]))}{more}")
    for path, shape in shapes.items():
        if others[path] != shape:
            raise ValueError(
                f"leaf {path!r}: {one_name} has shape {shape}, {other_name} has {others[path]}"
            )


def check_stack(base: Tree, stack: Tree) -> int:
    """The number of experts T. Raises `ValueError` where the stack doesn't fit the base."""
    if type(stack) in (list, tuple) and type(base) is not type(stack):
        raise ValueError(
            f"stack: expected one tree with a leading axis of experts, got a {type(stack).__name__}"
            f" of {len(stack)}; write merging.stack_trees(experts)"
        )
    tasks = number_of_tasks(stack)
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), stack)
    check_same_structure(base, one, "base", "an expert of the stack")
    return tasks


def number_of_tasks(stack: Tree) -> int:
    """T, the leading axis that all leaves share. Raises `ValueError` if they don't."""
    shapes = _shapes(stack)
    if not shapes:
        raise ValueError("stack: expected leaves, got an empty tree")
    first, shape = next(iter(shapes.items()))
    for path, other in shapes.items():
        if not other or not shape or other[0] != shape[0]:
            raise ValueError(
                f"leaf {path!r}: expected the leading task axis of {first!r} {shape}, got {other}"
            )
    if shape[0] == 0:
        raise ValueError("stack: expected at least one expert, got a task axis of length 0")
    return shape[0]


def check_finite(stack: Tree, names: Sequence[str] | None = None) -> None:
    """Raises `ValueError` naming the expert and the leaf that hold NaN or infinity.

    Reads values, so it works outside `jit` only.

    Args:
        stack: experts [T, ...].
        names: what errors call them; by default "expert 0", ...
    """
    for path, leaf in leaves_with_names(stack):
        if not is_merged(leaf):
            continue
        axes = tuple(range(1, leaf.ndim))
        wrong = np.asarray(jnp.count_nonzero(~jnp.isfinite(leaf), axis=axes))
        for index in np.flatnonzero(wrong).tolist():
            name = names[index] if names else f"expert {index}"
            size = int(np.prod(leaf.shape[1:]))
            raise ValueError(f"{name}: leaf {path!r} holds {wrong[index]} of {size} not finite")


def leaves_with_names(tree: Tree) -> list[tuple[str, Any]]:
    """(path like "layers/mlp/fc1/weight", leaf) in the tree's own order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def map_with_names(function: Callable, tree: Tree, *others: Tree) -> Tree:
    """`jax.tree.map` whose function is given the leaf's path first."""

    def named(path: Any, *leaves: Any) -> Any:
        return function(jax.tree_util.keystr(path, simple=True, separator="/"), *leaves)

    return jax.tree_util.tree_map_with_path(named, tree, *others)


def is_merged(leaf: Any) -> bool:
    """Floating leaves are merged, all others copied from the base."""
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def compute_dtype(*leaves: Any) -> Any:
    """float32, or what is wider; of several leaves the widest."""
    return reduce(jnp.promote_types, [leaf.dtype for leaf in leaves], jnp.dtype(jnp.float32))


def adds_to_zero(weights: Any) -> bool:
    """Whether weights [T, ...] add up to 0 somewhere, or to what is only rounding."""
    values = np.asarray(weights, np.float64)
    return bool((np.abs(values.sum(0)) <= 1e-6 * np.abs(values).sum(0)).any())


def is_concrete(value: Any) -> bool:
    """Whether a number or array is known now, not traced by `jit`, `vmap` or `grad`."""
    return not isinstance(value, Tracer)


@compiled()
def task_vectors(base: Tree, stack: Tree) -> Tree:
    """tau_t = theta_t - theta_0, stacked [T, ...] in float32 or what is wider.

    Zeros for leaves that aren't merged.

    Args:
        base: theta_0, a tree of parameters.
        stack: experts theta_t, a tree like `base` with a leading axis, [T, ...].

    Returns:
        A tree [T, ...], float32 or what is wider.
    """
    check_stack(base, stack)

    def difference(origin: jax.Array, experts: jax.Array) -> jax.Array:
        if not is_merged(experts):
            return jnp.zeros_like(experts)
        dtype = compute_dtype(origin, experts)
        return experts.astype(dtype) - origin.astype(dtype)

    return jax.tree.map(difference, base, stack)


@compiled()
def apply_task_vectors(base: Tree, tau: Tree, coefficients: Coefficients = 1.0) -> Tree:
    """theta_0 + sum_t c_t tau_t, leaf by leaf, in the base's dtypes.

    The gradient in c_t of anything computed from the result is <gradient in theta, tau_t>: one
    backward pass to theta, then T products.

    Args:
        base: theta_0, a tree of parameters.
        tau: task vectors, stacked [T, ...].
        coefficients: see `Coefficients`.

    Returns:
        A tree like `base`, in its dtypes.

    Raises:
        ValueError: structures or shapes don't match.
    """
    check_stack(base, tau)

    def add(path: str, origin: jax.Array, vectors: jax.Array, coefficient: Any) -> jax.Array:
        if not is_merged(origin):
            return origin
        dtype = compute_dtype(origin, vectors)
        weights = per_entry(coefficient, vectors, path, dtype)
        total = sum_over_tasks(scaled(weights, vectors.astype(dtype)))
        return (origin.astype(dtype) + total).astype(origin.dtype)

    return map_with_names(add, base, tau, spread(coefficients, base))


@compiled()
def combine(base: Tree, stack: Tree, weights: Coefficients) -> Tree:
    """(1 - sum_t w_t) theta_0 + sum_t w_t theta_t: exact where w is zero or one-hot.

    Args:
        base: theta_0, a tree of parameters.
        stack: experts theta_t, a tree like `base` with a leading axis, [T, ...].
        weights: see `Coefficients`; leaves may be as large as the stack's, one weight per entry.

    Returns:
        A tree like `base`, in its dtypes.
    """
    check_stack(base, stack)

    def mix(path: str, origin: jax.Array, experts: jax.Array, weight: Any) -> jax.Array:
        if not is_merged(origin):
            return origin
        dtype = compute_dtype(origin, experts)
        entry = per_entry(weight, experts, path, dtype)
        rest = 1 - sum_over_tasks(entry)
        terms = sum_over_tasks(scaled(entry, experts.astype(dtype)))
        return (scaled(rest, origin.astype(dtype)) + terms).astype(origin.dtype)

    return map_with_names(mix, base, stack, spread(weights, base))


@jax.custom_jvp
def scaled(weights: jax.Array, values: jax.Array) -> jax.Array:
    """w x, and what adds nothing where w is 0: 0 NaN is NaN, and 0 x + -0.0 may be 0.0.

    Args:
        weights: w, of a shape that broadcasts to that of the values.
        values: x [...].

    Returns:
        [...]; derivatives are those of w x, also where w is 0.
    """
    return jnp.where(weights == 0, -jnp.zeros((), values.dtype), weights * values)


def _scaled_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    weights, values = primals
    result = scaled(weights, values)
    # Zeros for what isn't differentiated, task vectors say, would be as large as that.
    changes = [
        tangent * other
        for tangent, other in zip(tangents, (values, weights), strict=True)
        if not isinstance(tangent, SymbolicZero)
    ]
    return result, reduce(jnp.add, changes) if changes else jnp.zeros_like(result)


scaled.defjvp(_scaled_jvp, symbolic_zeros=True)


def sum_over_tasks(stacked: jax.Array) -> jax.Array:
    """[T, ...] -> [...], one addition after the other.

    They fuse with what is added into one pass over memory; XLA's reductions of a leading axis on
    CPU take a hundred times as long and keep the terms.
    """
    return reduce(jnp.add, list(stacked))


def spread(coefficients: Coefficients, base: Tree) -> Tree:
    """One coefficient for every leaf of the base: the same for all, or those of a tree."""
    if jax.tree.structure(coefficients) == jax.tree.structure(base):
        return coefficients
    some = isinstance(coefficients, Mapping)  # of the base's leaves, not all
    if not some and len(jax.tree.leaves(coefficients)) == 1 and np.ndim(coefficients) <= 1:
        return jax.tree.map(lambda _: coefficients, base)
    raise ValueError(
        "coefficients: expected a number, [T] or a tree like the base, got "
        f"{jax.tree.structure(coefficients)}"
    )


def per_entry(coefficient: Any, stacked: jax.Array, path: str, dtype: Any = None) -> jax.Array:
    """A coefficient made to broadcast over the experts of a leaf.

    Args:
        coefficient: [], [T] or [T, leading axes of the leaf].
        stacked: [T, ...] the leaf of all experts.
        path: of the leaf, for the message.
        dtype: None for `compute_dtype(stacked)`.

    Returns:
        [T, ...] with axes of length 1 behind its own.

    Raises:
        ValueError: another shape.
    """
    value = jnp.asarray(coefficient).astype(compute_dtype(stacked) if dtype is None else dtype)
    if value.ndim == 0:
        value = jnp.broadcast_to(value, stacked.shape[:1])
    if value.shape != stacked.shape[: value.ndim]:
        raise ValueError(
            f"leaf {path!r}: expected coefficients [] or leading axes of {stacked.shape}, "
            f"got {value.shape}"
        )
    return value.reshape(*value.shape, *(1,) * (stacked.ndim - value.ndim))


def coefficients_by_name(tree: Tree, rules: Sequence[tuple[str, Any]], default: Any = 1.0) -> Tree:
    """One coefficient per leaf: that of the first rule whose regular expression is in its path.

    `[("head", 0.0), ("layers/.*/mlp", 0.5)]` leaves heads alone and halves the MLPs.

    Args:
        tree: parameters, for the names of its leaves.
        rules: (pattern, coefficient); a coefficient is [], [T] or [T, ...].
        default: of leaves that no rule names.

    Returns:
        A tree like it with a coefficient for every leaf.
    """

    def choose(path: str, leaf: Any) -> jax.Array:
        value = next((value for pattern, value in rules if re.search(pattern, path)), default)
        return jnp.asarray(value, compute_dtype(leaf) if is_merged(leaf) else jnp.float32)

    return map_with_names(choose, tree)


def _shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
    return {path: tuple(np.shape(leaf)) for path, leaf in leaves_with_names(tree)}


def leaf_key(key: jax.Array, path: str) -> jax.Array:
    """The key of a leaf's masks, the same for "a/b" of a nested tree and "a.b" of a checkpoint."""
    return jax.random.fold_in(key, zlib.crc32(path.replace("/", ".").encode()))


def merge_matrices(
    base: Tree,
    stack: Tree,
    coefficient: Any,
    is_matrix: Callable[[str, jax.Array], bool] | None,
    merge: Callable[[jax.Array], jax.Array],
) -> Tree:
    """theta_0 + lambda times merged task vectors: matrices by `merge`, other leaves averaged.

    Args:
        base: theta_0.
        stack: experts [T, ...].
        coefficient: lambda.
        is_matrix: (path, one task's leaf) -> whether its last two axes are one linear map; None:
            leaves with two axes.
        merge: task vectors [T, ..., m, n] -> [..., m, n].

    Returns:
        A tree like `base`.
    """
    chosen = is_matrix or (lambda path, leaf: leaf.ndim == 2)

    def one(path: str, vectors: jax.Array) -> jax.Array:
        factorized = is_merged(vectors) and vectors.size and chosen(path, vectors[0])
        merged = merge(vectors) if factorized else sum_over_tasks(vectors) / len(vectors)
        return merged[None].astype(vectors.dtype)

    return apply_task_vectors(base, map_with_names(one, task_vectors(base, stack)), coefficient)
