"""Merges that are linear in the experts, or interpolate between two trees.

Averaging (model soups, Wortsman et al. 2022), task arithmetic (Ilharco et al. 2023,
arXiv 2212.04089), Model Stock (Jang et al. 2024, arXiv 2403.19522) and spherical interpolation.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.merging.static.trees import (
    Coefficients,
    Tree,
    adds_to_zero,
    check_same_structure,
    check_stack,
    combine,
    compute_dtype,
    is_concrete,
    is_merged,
    number_of_tasks,
    per_entry,
    scaled,
    spread,
    sum_over_tasks,
)
from jaxmethods.numerics.compiled import compiled

LINEAR_ABOVE = 0.9995
"""Cosine beyond which `slerp` is linear: the sine of the angle is lost in rounding."""


def average(stack: Tree, weights: Coefficients | None = None, normalize: bool = False) -> Tree:
    """sum_t w_t theta_t, by default the mean (1/T) sum_t theta_t.

    Args:
        stack: experts [T, ...].
        weights: None for 1/T each; see `trees.Coefficients`.
        normalize: divide by sum_t w_t.

    Returns:
        A tree of one expert's shapes and dtypes; integer leaves are those of the first expert.

    Raises:
        ValueError: `normalize` with weights that add up to 0 (unless they are traced).
    """
    tasks = number_of_tasks(stack)
    weights = 1 / tasks if weights is None else weights
    if normalize:
        check_total(weights, tasks)
    return _average(stack, weights, normalize)


def check_total(weights: Coefficients, tasks: int) -> None:
    """Raises `ValueError` where weights that are divided by their sum add up to 0."""
    for weight in jax.tree.leaves(weights):
        if is_concrete(weight):
            value = np.asarray(weight, np.float64)
            if adds_to_zero(np.broadcast_to(value, (tasks,)) if value.ndim == 0 else value):
                raise ValueError(
                    f"weights: expected a sum that isn't 0, since normalize divides by it, got "
                    f"{value.tolist()}"
                )


@compiled("normalize")
def _average(stack: Tree, weights: Coefficients, normalize: bool) -> Tree:
    def mean(experts: jax.Array, weight: Any) -> jax.Array:
        if not is_merged(experts):
            return experts[0]
        weight = per_entry(weight, experts, "weights")
        if normalize:
            weight = weight / jnp.sum(weight, axis=0)
        terms = scaled(weight, experts.astype(compute_dtype(experts)))
        return sum_over_tasks(terms).astype(experts.dtype)

    return jax.tree.map(mean, stack, spread(weights, stack))


def task_arithmetic(base: Tree, stack: Tree, coefficients: Coefficients = 0.3) -> Tree:
    """theta_0 + sum_t lambda_t (theta_t - theta_0).

    0.3 is the usual value for eight CLIP experts; a negative one forgets a task; with one expert
    a value above 1 extrapolates (ExPO). Bit for bit the base at 0, an expert where one-hot.

    Args:
        base: theta_0, a tree of parameters.
        stack: experts theta_t, a tree like `base` with a leading axis, [T, ...].
        coefficients: lambda_t, see `trees.Coefficients`.

    Returns:
        A tree like `base`, in its dtypes.
    """
    return combine(base, stack, coefficients)


@compiled()
def analogy(target: Tree, source: Tree, destination: Tree, coefficient: Any = 1.0) -> Tree:
    """a + lambda (c - b): "b is to c as a is to the result".

    Args:
        target: a, a tree of parameters.
        source: b, a tree like it.
        destination: c, a tree like it.
        coefficient: lambda, float or [].

    Returns:
        A tree like `target`.
    """
    check_same_structure(target, source, "target", "source")
    check_same_structure(target, destination, "target", "destination")

    def move(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
        if not is_merged(a):
            return a
        dtype = compute_dtype(a, b, c)
        return (a.astype(dtype) + coefficient * (c.astype(dtype) - b.astype(dtype))).astype(a.dtype)

    return jax.tree.map(move, target, source, destination)


@compiled()
def model_stock(base: Tree, stack: Tree) -> Tree:
    """t mean(theta_t) + (1 - t) theta_0 per leaf, t = T c / (1 + (T - 1) c).

    c is the mean cosine between two different task vectors of the leaf, 0 where one is zero or
    where it is negative: experts that moved apart leave the base. (t has a pole at
    c = -1 / (T - 1), and a negative t moves away from all of them.) With one expert c = 1, the
    expert itself.

    Args:
        base: theta_0, a tree of parameters.
        stack: experts theta_t, a tree like `base` with a leading axis, [T, ...].

    Returns:
        A tree like `base`, in its dtypes.
    """
    tasks = check_stack(base, stack)

    def weight(origin: jax.Array, experts: jax.Array) -> jax.Array:
        if not is_merged(origin) or tasks == 1:
            return jnp.full(tasks, 1 / tasks, jnp.float32)
        dtype = compute_dtype(origin, experts)
        vectors = (experts.astype(dtype) - origin.astype(dtype)).reshape(tasks, -1)  # [T, n]
        norms = jnp.linalg.norm(vectors, axis=1, keepdims=True)
        units = vectors / jnp.where(norms > 0, norms, 1)
        total = jnp.square(jnp.linalg.norm(jnp.sum(units, 0))) - jnp.sum(norms > 0, dtype=dtype)
        cosine = jnp.maximum(total / (tasks * (tasks - 1)), 0)
        return jnp.full(tasks, cosine / (1 + (tasks - 1) * cosine))

    return combine(base, stack, jax.tree.map(weight, base, stack))


@compiled()
def slerp(one: Tree, other: Tree, t: Any) -> Tree:
    """Spherical interpolation per leaf, from `one` (t = 0) to `other` (t = 1).

    sin((1-t) phi)/sin(phi) a + sin(t phi)/sin(phi) b with phi the angle between the leaves as
    vectors; linear where |cos phi| > 0.9995 or a leaf is zero. Exact at both ends.

    Args:
        one: a, a tree of parameters.
        other: b, a tree like it.
        t: float or [], may be traced.

    Returns:
        A tree like `one`.
    """
    check_same_structure(one, other, "the first tree", "the second tree")

    def turn(a: jax.Array, b: jax.Array) -> jax.Array:
        if not is_merged(a):
            return a
        dtype = compute_dtype(a, b)
        weight_a, weight_b = slerp_weights(a.astype(dtype), b.astype(dtype), t)
        return (weight_a * a.astype(dtype) + weight_b * b.astype(dtype)).astype(a.dtype)

    return jax.tree.map(turn, one, other)


def slerp_weights(a: jax.Array, b: jax.Array, t: Any) -> tuple[jax.Array, jax.Array]:
    """What the two leaves are multiplied by, both []."""
    t = jnp.asarray(t, a.dtype)
    norms = jnp.linalg.norm(a.ravel()) * jnp.linalg.norm(b.ravel())
    cosine = jnp.sum(a * b) / jnp.where(norms > 0, norms, 1)
    linear = (jnp.abs(cosine) > LINEAR_ABOVE) | (norms == 0)
    angle = jnp.arccos(jnp.where(linear, 0.0, cosine))
    inside = (t != 0) & (t != 1)  # at the ends rounding would leave a trace of the other leaf
    sine = jnp.sin(angle)
    weight_a = jnp.where(linear | ~inside, 1 - t, jnp.sin((1 - t) * angle) / sine)
    weight_b = jnp.where(linear | ~inside, t, jnp.sin(t * angle) / sine)
    return weight_a, weight_b
