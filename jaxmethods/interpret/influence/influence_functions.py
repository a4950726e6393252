"""Influence functions: what the weight of a training example does to a loss elsewhere.

    I(z, z') = d l(z') / d eps = -grad l(z')^T (G + lam I)^-1 grad l(z)

when z's weight in the mean loss grows by eps (Koh, Liang 2017). Removing z from N examples changes
l(z') by -I / N to first order. G is by default the generalized Gauss-Newton matrix, which makes the
system positive definite (Martens 2010; Bae et al. 2022). Each query is one system, solved by
conjugate gradients; its inner products with all training gradients are one tangent pass, so no
training gradient is kept.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.interpret import trees
from jaxmethods.interpret.curvature.operators import Operator, Product, ggn, shift
from jaxmethods.interpret.gradients.per_example import map_gradients
from jaxmethods.interpret.problem import Problem, one_batch, total_weight
from jaxmethods.interpret.trees import Vector
from jaxmethods.numerics.compiled import compiled


class Influence(NamedTuple):
    """Influences of N training examples on Q queries."""

    values: jax.Array
    """[N, Q]."""
    residuals: jax.Array
    """[Q], |A x - g| / |g| of each query's system: how far it is solved."""


def solve(
    product: Product, right: Vector, iterations: int, tolerance: float
) -> tuple[Vector, jax.Array]:
    """A x = b by conjugate gradients.

    Args:
        product: v -> A v, positive definite.
        right: b.
        iterations: at most.
        tolerance: relative residual at which they stop.

    Returns:
        x and |A x - b| / |b| [], computed anew and not by recurrence.
    """
    unit = trees.unit_of(right)  # gradients of 1e-22 have no squares in float32
    right = jax.tree.map(lambda leaf: leaf / unit.astype(leaf.dtype), right)
    squared = trees.vdot(right, right)

    def unfinished(carry: tuple) -> jax.Array:
        index, _, _, _, square = carry
        return (index < iterations) & (square > tolerance**2 * squared)

    def step(carry: tuple) -> tuple:
        index, x, rest, direction, square = carry
        image = product(direction)
        length = square / trees.vdot(direction, image)
        x, rest = trees.axpy(length, direction, x), trees.axpy(-length, image, rest)
        after = trees.vdot(rest, rest)
        return index + 1, x, rest, trees.axpy(after / square, direction, rest), after

    start = jnp.int32(0), trees.zeros(right), right, right, squared
    _, x, _, _, _ = jax.lax.while_loop(unfinished, step, start)
    apart = jax.tree.map(jnp.subtract, product(x), right)
    residual = trees.norm(apart) / jnp.sqrt(jnp.where(squared > 0, squared, 1))
    return trees.scale(unit, x), residual


@compiled("iterations", "together")
def influence(
    problem: Problem,
    queries: Problem,
    damping: jax.Array | float,
    operator: Operator | None = None,
    iterations: int = 100,
    tolerance: float = 1e-4,
    together: int = 8,
) -> Influence:
    """Influences of every training example on every query's loss.

    Args:
        problem: parameters, loss and N training examples.
        queries: the same parameters with Q other examples.
        damping: lam; 0.1 times the mean of G's diagonal is a common choice.
        operator: in place of G; G + lam I must be positive definite.
        iterations: of conjugate gradients, at most.
        tolerance: relative residual at which they stop.
        together: systems solved side by side.

    Returns:
        Influences [N, Q] and the systems' residuals [Q].
    """
    curvature = shift(ggn(problem) if operator is None else operator, damping)
    product = curvature.product()

    def one(gradient: Vector) -> tuple[jax.Array, jax.Array]:
        solution, residual = solve(product, gradient, iterations, tolerance)
        return -along(problem, solution), residual

    values, residuals = map_gradients(queries, one, together)
    return Influence(values.T, residuals)


def along(problem: Problem, vector: Vector) -> jax.Array:
    """g_i . v of every example's gradient with a vector, [N], without any gradient."""
    joined = one_batch(problem)
    losses = lambda at: joined.losses(at, joined.data)  # noqa: E731
    return jax.jvp(losses, (joined.floats,), (vector,))[1]


@compiled("iterations", "together")
def self_influence(
    problem: Problem,
    damping: jax.Array | float,
    iterations: int = 100,
    tolerance: float = 1e-4,
    together: int = 8,
) -> jax.Array:
    """g_i^T (G + lam I)^-1 g_i: how far an example pulls its own loss, a score of memorization.

    Args:
        problem: N training examples.
        damping: lam.
        iterations: of conjugate gradients, at most.
        tolerance: relative residual at which they stop.
        together: systems solved side by side.

    Returns:
        [N], larger for examples that the others don't explain.
    """
    product = shift(ggn(problem), damping).product()

    def one(gradient: Vector) -> jax.Array:
        solution, _ = solve(product, gradient, iterations, tolerance)
        return trees.vdot(gradient, solution)

    return map_gradients(problem, one, together)


@compiled("iterations")
def parameter_change(
    problem: Problem,
    weights: jax.Array,
    damping: jax.Array | float,
    iterations: int = 100,
    tolerance: float = 1e-6,
) -> Vector:
    """The first-order change of the minimum when examples get other weights.

    Args:
        problem: N examples at a minimum of their mean loss.
        weights: [N], added to one: -1 removes an example; a group is several.
        damping: lam.
        iterations: of conjugate gradients, at most.
        tolerance: relative residual at which they stop.

    Returns:
        A vector, -(G + lam I)^-1 sum_i weights_i g_i / N.
    """
    joined = one_batch(problem)
    losses = lambda at: joined.losses(at, joined.data)  # noqa: E731
    _, cotangent = jax.vjp(losses, joined.floats)
    (gradient,) = cotangent(weights / total_weight(joined))  # padding is none of the N
    solution, _ = solve(shift(ggn(problem), damping).product(), gradient, iterations, tolerance)
    return trees.scale(-1, solution)
