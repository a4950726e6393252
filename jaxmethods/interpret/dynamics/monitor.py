"""Diagnostics inside a jitted training loop, at a small share of its time.

    monitor = train_monitor(every=200)
    state = monitor.init(key, problem)
    state = monitor.update(state, problem)       # in the step; computes every 200th time

Each time it takes one Hessian product along a vector that it keeps (power iteration, warm, so that
it follows the eigenvector through training), gradients of two halves of the batch, and norms:

    sharpness      v . H v for the kept unit vector v, which approaches lambda of largest magnitude
    noise scale    tr(Sigma) / |g|^2 from batches of B / 2 and B, both averaged apart
                   (McCandlish et al. 2018)
    weight norm, distance from the start, loss, gradient norm

A row that is not due costs a predicate, one that is due about as much as six steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.interpret import trees
from jaxmethods.interpret.gradients.noise_scale import from_two_batches
from jaxmethods.interpret.problem import Problem, mean_gradient, mean_loss, number_of_examples
from jaxmethods.interpret.trees import Vector
from jaxmethods.numerics.lazily import when


class MonitorRow(NamedTuple):
    """The newest values, [] each; NaN before the first."""

    loss: jax.Array
    gradient_norm: jax.Array
    sharpness: jax.Array
    sharpness_residual: jax.Array
    """|H v - lambda v|: how far the kept vector is from an eigenvector."""
    noise_scale: jax.Array
    weight_norm: jax.Array
    distance: jax.Array


class MonitorState(NamedTuple):
    """What the monitor keeps between steps."""

    step: jax.Array
    """Updates so far, int32 []."""
    direction: Vector
    """Unit vector of the power iteration."""
    start: Vector
    """Parameters at the start."""
    trace: jax.Array
    """Running mean of tr(Sigma), []."""
    square: jax.Array
    """Running mean of |g|^2, []."""
    row: MonitorRow


class Monitor(NamedTuple):
    """Two pure functions."""

    init: Callable[[jax.Array, Problem], MonitorState]
    update: Callable[[MonitorState, Problem], MonitorState]


def train_monitor(every: int = 200, iterations: int = 1, decay: float = 0.9) -> Monitor:
    """A monitor that computes at every `every`-th update, the first one included.

    Args:
        every: cadence.
        iterations: power iterations each time.
        decay: of the running means of the noise scale, per row.

    Returns:
        init and update; both pure, to be called inside a jitted step with the step's own batch.

    Raises:
        ValueError: a cadence or number of iterations below one.
    """
    if every < 1 or iterations < 1:
        raise ValueError(f"every, iterations: expected at least 1, got {every} and {iterations}")

    def init(key: jax.Array, problem: Problem) -> MonitorState:
        vector = problem.floats
        drawn = trees.random_like(key, vector, "normal")
        zero = jnp.zeros((), trees.dtype(vector))
        nan = jnp.full_like(zero, jnp.nan)
        direction = trees.scale(1 / trees.norm(drawn), drawn)
        row = MonitorRow(*[nan] * len(MonitorRow._fields))
        return MonitorState(jnp.int32(0), direction, vector, zero, zero, row)

    def update(state: MonitorState, problem: Problem) -> MonitorState:
        due = state.step % every == 0
        state = when(due, lambda: _measure(state, problem, iterations, decay), state)
        return state._replace(step=state.step + 1)

    return Monitor(init, update)


def _measure(state: MonitorState, problem: Problem, iterations: int, decay: float) -> MonitorState:
    vector = problem.floats

    def gradient_and_loss(at: Vector) -> tuple[Vector, jax.Array]:
        loss, gradient = jax.value_and_grad(lambda v: mean_loss(problem, v))(at)
        return gradient, loss

    gradient, product, loss = jax.linearize(gradient_and_loss, vector, has_aux=True)
    direction = state.direction
    sharpness = residual = jnp.zeros_like(state.trace)
    for _ in range(iterations):
        image = product(direction)
        sharpness = trees.vdot(direction, image)
        residual = trees.norm(trees.axpy(-sharpness, direction, image))
        length = trees.norm(image)
        found = jnp.isfinite(length) & (length > 0)
        safe = jnp.where(found, length, 1)
        direction = jax.tree.map(
            lambda new, old, f=found, s=safe: jnp.where(f, new / s, old), image, direction
        )
    trace, signal = _two_batches(problem, vector, gradient)
    # What is kept stays finite: a batch that has no number is in this row and in no later one.
    kept = jnp.isfinite(trace) & jnp.isfinite(signal)
    means = jnp.stack([state.trace, state.square])
    means = jnp.where(kept, decay * means + (1 - decay) * jnp.stack([trace, signal]), means)
    trace, signal = means
    scale = jnp.where(signal > 0, trace / jnp.where(signal > 0, signal, 1), jnp.nan)
    away = jax.tree.map(jnp.subtract, vector, state.start)
    row = MonitorRow(
        loss,
        trees.norm(gradient),
        sharpness,
        residual,
        scale,
        trees.norm(vector),
        trees.norm(away),
    )
    return state._replace(direction=direction, trace=trace, square=signal, row=row)


def _two_batches(problem: Problem, vector: Vector, gradient: Vector) -> tuple[jax.Array, jax.Array]:
    """tr(Sigma) and |g|^2 from the batch and its halves; NaN where one of these has no example."""
    if problem.microbatched:
        raise ValueError("problem: expected one batch, got microbatches")
    count, square = number_of_examples(problem.data), trees.vdot(gradient, gradient)
    if count < 2:
        return jnp.full_like(square, jnp.nan), jnp.full_like(square, jnp.nan)
    half = count // 2
    first = jax.tree.map(lambda x: x[:half], problem.data)
    one = mean_gradient(replace(problem, data=first), vector)
    small = trees.vdot(one, one)
    if problem.data.weight is not None or problem.loss.counted is not None:
        # What a mean of weighted examples has of noise is that of (sum w)^2 / sum w^2 of them.
        weight = problem.weights(problem.data, square.dtype)
        less, more = (jnp.sum(w) ** 2 / jnp.sum(w**2) for w in (weight[:half], weight))
        apart = jnp.where(less < more, 1.0, jnp.nan)
        sigma = (small - square) / (1 / less - 1 / more)
        return apart * sigma, apart * (more * square - less * small) / (more - less)
    if count % 2 == 0:
        other = jax.tree.map(lambda g, own: 2 * g - own, gradient, one)  # of the second half
        small = (small + trees.vdot(other, other)) / 2
    return from_two_batches(small, square, half, count)
