"""The loss along directions and between models.

    filter normalization    d_j <- d_j |w_j| / |d_j|  for every output unit j, 0 for biases
    barrier                 max_t L((1 - t) a + t b) - ((1 - t) L(a) + t L(b))

(Li et al., "Visualizing the loss landscape of neural nets", 2018; Frankle et al., "Linear mode
connectivity", 2020.) Normalized directions can be compared between networks whose layers have other
scales; what lies off the drawn plane is not seen.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.interpret import trees
from jaxmethods.interpret.problem import Problem, mean_loss
from jaxmethods.interpret.trees import Vector
from jaxmethods.numerics.compiled import compiled

TINY = 1e-10
"""Added to the norm of a unit's direction, as the authors' code does."""


def filter_normalized(direction: Vector, params: Vector) -> Vector:
    """A direction with every output unit's part as long as its weights.

    Args:
        direction: a vector.
        params: the parameters; output units are the last axis of leaves with two axes or more.

    Returns:
        A vector; 0 in leaves of one axis or none.
    """

    def leaf(d: jax.Array, w: jax.Array) -> jax.Array:
        if w.ndim < 2:
            return jnp.zeros_like(w)
        axes = tuple(range(w.ndim - 1))
        norm = lambda x: jnp.sqrt(jnp.sum(x**2, axes))  # noqa: E731
        return (d * (norm(w) / (norm(d) + TINY))).astype(w.dtype)

    return jax.tree.map(leaf, direction, params)


def random_direction(key: jax.Array, params: Vector) -> Vector:
    """A filter-normalized direction of independent normal entries."""
    vector = trees.floats(params)
    return filter_normalized(trees.random_like(key, vector, "normal"), vector)


@compiled("together")
def loss_slice(
    problem: Problem, directions: tuple[Vector, ...], points: jax.Array, together: int = 4
) -> jax.Array:
    """L(theta + sum_k c_k d_k) at several points.

    Args:
        problem: theta and the data.
        directions: K vectors.
        points: coefficients [n, K].
        together: points that are vectorized.

    Returns:
        [n].
    """

    def at(point: jax.Array) -> jax.Array:
        vector = problem.floats
        for coefficient, direction in zip(point, directions, strict=True):
            vector = trees.axpy(coefficient, direction, vector)
        return mean_loss(problem, vector)

    return jax.lax.map(at, points, batch_size=min(together, len(points)))


class Barrier(NamedTuple):
    """The straight way between two models."""

    height: jax.Array
    """[], the largest excess over the line between the ends' losses; 0 where there is none."""
    losses: jax.Array
    """[n], along the way."""
    positions: jax.Array
    """[n], t."""


@compiled("points", "together")
def barrier(problem: Problem, other: Vector, points: int = 25, together: int = 4) -> Barrier:
    """The loss between the problem's parameters and others.

    Args:
        problem: a at t = 0, and the data.
        other: b at t = 1, params or a vector.
        points: how many, with both ends.
        together: points that are vectorized.

    Returns:
        Height [] and losses [n].
    """
    vector = problem.floats
    way = jax.tree.map(jnp.subtract, trees.floats(other), vector)
    positions = jnp.linspace(0, 1, points, dtype=trees.dtype(vector))
    losses = loss_slice(problem, (way,), positions[:, None], together)
    line = (1 - positions) * losses[0] + positions * losses[-1]
    return Barrier(jnp.max(losses - line), losses, positions)


@compiled()
def trajectory_plane(checkpoints: Vector) -> tuple[tuple[Vector, Vector], jax.Array, jax.Array]:
    """The plane through the last of stacked checkpoints in which training moved most.

    Args:
        checkpoints: stacked vectors [T, ...], T >= 3.

    Returns:
        Two orthonormal vectors, coordinates of the checkpoints [T, 2], and the shares [2] of the
        squared distances that they explain.
    """
    offsets = jax.tree.map(lambda rows: rows - rows[-1], checkpoints)
    gram = sum(
        leaf.reshape(len(leaf), -1) @ leaf.reshape(len(leaf), -1).T
        for leaf in jax.tree.leaves(offsets)
    )
    values, vectors = jnp.linalg.eigh(gram)
    largest, weights = values[:-3:-1], vectors[:, :-3:-1]
    directions = trees.combine((weights / jnp.sqrt(jnp.maximum(largest, 1e-30))).T, offsets)
    first, second = (jax.tree.map(lambda rows, i=i: rows[i], directions) for i in (0, 1))
    return (first, second), weights * jnp.sqrt(largest), largest / jnp.trace(gram)
