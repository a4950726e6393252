"""Gradients of every example's own loss, g_i = grad l_i, and their norms.

All gradients at once need N P numbers; they are made a chunk of examples at a time. Norms and inner
products are reduced within a chunk, so that they need only as much memory as one chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmethods.interpret import trees
from jaxmethods.interpret.problem import Data, Problem, number_of_examples, one_batch, weights
from jaxmethods.interpret.trees import Vector
from jaxmethods.numerics.compiled import compiled


def map_gradients(problem: Problem, function: Callable[[Vector], Any], chunk: int = 64) -> Any:
    """`function` of every example's gradient, stacked [N, ...], a chunk of examples at a time.

    Args:
        problem: microbatches are joined; weights don't enter.
        function: of one gradient, to a pytree.
        chunk: examples whose gradients are in memory together.

    Returns:
        What `function` returns, with a leading axis N.
    """
    problem = one_batch(problem)
    vector = problem.floats

    def loss(vector: Vector, example: Data) -> jax.Array:
        alone = jax.tree.map(lambda x: x[None], example)
        return problem.losses(vector, alone)[0]

    def one(example: Data) -> Any:
        return function(jax.grad(loss)(vector, example))

    chunk = min(chunk, number_of_examples(problem.data))
    return jax.lax.map(one, problem.data._replace(weight=None), batch_size=chunk)


@compiled("chunk")
def per_example_gradients(problem: Problem, chunk: int = 64) -> Vector:
    """All gradients, stacked [N, ...].

    Args:
        problem: any; N P numbers must fit into memory.
        chunk: examples that are differentiated together.

    Returns:
        Stacked vectors [N, ...].
    """
    return map_gradients(problem, lambda gradient: gradient, chunk)


@compiled("chunk")
def squared_norms(problem: Problem, chunk: int = 64) -> jax.Array:
    """|g_i|^2 of every example, [N], without keeping the gradients.

    Args:
        problem: any.
        chunk: examples whose gradients are in memory together.

    Returns:
        [N].
    """
    return map_gradients(problem, lambda gradient: trees.vdot(gradient, gradient), chunk)


@compiled("chunk")
def stiffness(problem: Problem, labels: jax.Array, chunk: int = 64) -> dict[str, jax.Array]:
    """Mean cosines of gradients of two examples, within classes and between them.

    (Fort et al., "Stiffness: a new perspective on generalization in neural networks", 2019.)

    Args:
        problem: any; its N P gradients must fit into memory. Examples of weight 0 are left out.
        labels: class of every example, int [N].
        chunk: examples that are differentiated together.

    Returns:
        "within", "between" and "all", [] each; NaN where there is no such pair.
    """
    gradients = per_example_gradients(problem, chunk)
    gram = sum(
        leaf.reshape(len(leaf), -1) @ leaf.reshape(len(leaf), -1).T
        for leaf in jax.tree.leaves(gradients)
    )
    lengths = jnp.sqrt(jnp.diag(gram))
    product = lengths[:, None] * lengths
    cosines = jnp.where(product > 0, gram / jnp.where(product > 0, product, 1), 0)
    labels = labels.reshape(-1)
    there = weights(one_batch(problem).data, cosines.dtype) > 0  # padding is in no pair
    other = ~jnp.eye(len(labels), dtype=bool) & there[:, None] & there
    same = labels[:, None] == labels

    def mean(pairs: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(pairs, cosines, 0)) / jnp.sum(pairs)

    return {"within": mean(same & other), "between": mean(~same & other), "all": mean(other)}
