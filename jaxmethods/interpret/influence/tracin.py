"""TracIn: influence as inner products of gradients along the training run.

    TracIn(z, z') = sum_t eta_t grad l(theta_t, z) . grad l(theta_t, z')

(Pruthi et al., "Estimating training data influence by tracing gradient descent", 2020). Positive:
training on z lowered the loss at z'.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmethods.interpret.gradients.per_example import map_gradients
from jaxmethods.interpret.influence.influence_functions import along
from jaxmethods.interpret.problem import Problem
from jaxmethods.interpret.trees import Vector
from jaxmethods.numerics.compiled import compiled


@compiled("together")
def tracin(
    problem: Problem,
    queries: Problem,
    checkpoints: Vector,
    rates: jax.Array,
    together: int = 8,
) -> jax.Array:
    """Scores of every training example for every query.

    Args:
        problem: the loss and N training examples.
        queries: the same model with Q other examples.
        checkpoints: stacked vectors [T, ...].
        rates: learning rate times steps between checkpoints, [T].
        together: queries side by side.

    Returns:
        [N, Q].
    """

    def at(total: jax.Array, own: tuple) -> tuple[jax.Array, None]:
        vector, rate = own
        here, there = problem.at(vector), queries.at(vector)
        scores = map_gradients(there, lambda gradient: along(here, gradient), together).T
        return total + (rate * scores).astype(total.dtype), None

    shape = jax.eval_shape(lambda: map_gradients(queries, lambda g: along(problem, g), together))
    total, _ = jax.lax.scan(at, jnp.zeros(shape.shape[::-1], shape.dtype), (checkpoints, rates))
    return total
