"""Gradients of every example's own loss, g_i = grad l_i, and their norms.

All gradients at once need N P numbers; they are made a chunk of examples at a time, and reduced
within it. Norms need no gradients of linear layers at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxmethods.interpret import trees
from jaxmethods.interpret.gradients.linear_layers import linear_layers, squares
from jaxmethods.interpret.problem import (
    Data,
    Problem,
    map_batches,
    number_of_examples,
    one_batch,
)
from jaxmethods.interpret.trees import Vector
from jaxmethods.numerics.compiled import compiled


def map_gradients(
    problem: Problem,
    function: Callable[[Vector], Any],
    chunk: int = 64,
    part: Vector | None = None,
) -> Any:
    """`function` of every example's gradient, stacked [N, ...], a chunk of examples at a time.

    Args:
        problem: microbatches are joined; weights don't enter.
        function: of one gradient, to a pytree.
        chunk: examples whose gradients are in memory together.
        part: parameters with None in place of those that are held fixed; None: all.

    Returns:
        What `function` returns, with a leading axis N.
    """
    problem = one_batch(problem)
    whole = problem.floats
    vector = whole if part is None else part

    def loss(vector: Vector, example: Data) -> jax.Array:
        alone = jax.tree.map(lambda x: x[None], example)
        return problem.losses(trees.merge(whole, vector), alone)[0]

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
    """|g_i|^2 of every example, [N], without the gradients.

    Linear layers have theirs from inputs and cotangents (`linear_layers`); only what is left, such
    as biases and layers in a loop, is differentiated example by example.

    Args:
        problem: any; microbatches are taken one after the other.
        chunk: examples whose gradients in what is left are in memory together.

    Returns:
        [N].
    """

    def of_batch(batch: Data) -> jax.Array:
        layers = linear_layers(
            lambda vector, batch: problem.losses(vector, batch), problem.floats, batch
        )
        pulled = layers.pull(jnp.ones_like(layers.outputs))
        total = sum(map(squares, layers.inputs, pulled), jnp.zeros_like(layers.outputs))
        if not jax.tree.leaves(layers.rest):
            return total
        left = replace(problem, data=batch, microbatched=False)
        return total + map_gradients(left, lambda own: trees.vdot(own, own), chunk, layers.rest)

    if not problem.microbatched:
        return of_batch(problem.data)
    return map_batches(problem, of_batch).reshape(-1)


@compiled("chunk")
def stiffness(problem: Problem, labels: jax.Array, chunk: int = 64) -> dict[str, jax.Array]:
    """Mean cosines of gradients of two examples, within classes and between them.

    (Fort et al., "Stiffness: a new perspective on generalization in neural networks", 2019.)

    Args:
        problem: any; its N P gradients must fit into memory. Examples of weight 0 are left out.
        labels: class of every example, int [N]; one that is negative is none, within nor between.
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
    zero = product <= 0  # false of NaN
    cosines = jnp.where(zero, 0, gram / jnp.where(zero, 1, product))
    labels = labels.reshape(-1)
    there = problem.weights(one_batch(problem).data, cosines.dtype) > 0  # padding is in no pair
    other = ~jnp.eye(len(labels), dtype=bool) & there[:, None] & there
    same = labels[:, None] == labels
    known = other & (labels >= 0)[:, None] & (labels >= 0)

    def mean(pairs: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(pairs, cosines, 0)) / jnp.sum(pairs)

    return {"within": mean(same & known), "between": mean(~same & known), "all": mean(other)}
