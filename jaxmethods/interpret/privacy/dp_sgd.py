"""Differentially private gradients: Poisson batches, per-example clipping, noise.

    g = (sum_{i in batch} g_i min(1, C / |g_i|) + C sigma N(0, I)) / (q N)

(Abadi et al. 2016.) Every example is in a batch independently with probability q, as the accountant
assumes; the sum is divided by the expected batch size q N, since the actual one is private. A batch
is padded to a fixed capacity and its empty rows have weight 0, so they add nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.interpret import trees
from jaxmethods.interpret.problem import Data, Problem, number_of_examples
from jaxmethods.interpret.trees import Vector


class PoissonBatch(NamedTuple):
    """Rows of a batch."""

    indices: jax.Array
    """[capacity] int32; 0 in empty rows."""
    weight: jax.Array
    """[capacity]: 1, or 0 in empty rows."""
    dropped: jax.Array
    """Drawn examples that found no place, []; not 0: the guarantee doesn't hold."""


def default_capacity(examples: int, rate: float, deviations: float = 8.0) -> int:
    """Rows that a batch exceeds only with the probability of 8 standard deviations."""
    spread = (examples * rate * (1 - rate)) ** 0.5
    return min(examples, int(examples * rate + deviations * spread) + 1)


def poisson_batch(
    key: jax.Array, examples: int, rate: jax.Array | float, capacity: int
) -> PoissonBatch:
    """Draws every example independently.

    Args:
        key: of the draw.
        examples: N.
        rate: q.
        capacity: rows of the batch.

    Returns:
        Indices and weights [capacity].
    """
    drawn = jax.random.bernoulli(key, rate, (examples,))
    indices = jnp.flatnonzero(drawn, size=capacity, fill_value=examples)
    there = indices < examples
    dropped = jnp.sum(drawn) - jnp.sum(there)
    return PoissonBatch(jnp.where(there, indices, 0), there.astype(jnp.float32), dropped)


def clipped_sum(problem: Problem, batch: Data, bound: jax.Array | float, chunk: int = 32) -> Vector:
    """The weighted sum of clipped per-example gradients, a chunk of them at a time.

    Args:
        problem: parameters and loss.
        batch: examples [B, ...]; rows of weight 0 add nothing, even where their gradient is NaN.
        bound: C, the largest norm of a gradient.
        chunk: examples that are differentiated together.

    Returns:
        A vector whose norm changes by at most C when one example is added or taken away.
    """
    vector, count = problem.floats, number_of_examples(batch)

    def one(example: Data) -> Vector:
        alone = jax.tree.map(lambda x: x[None], example)
        gradient = jax.grad(lambda at: problem.losses(at, alone)[0])(vector)
        norm = trees.norm(gradient)
        factor = jnp.minimum(1, bound / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))
        weight = problem.weights(alone, norm.dtype)[0]
        return jax.tree.map(lambda g: jnp.where(weight > 0, weight * factor * g, 0), gradient)

    size = min(chunk, count)
    pad = -count % size
    padded = jax.tree.map(
        lambda x: jnp.concatenate([x, jnp.repeat(x[:1], pad, axis=0)]),
        batch._replace(weight=problem.weights(batch, jnp.float32)),
    )
    there = jnp.arange(count + pad) < count
    padded = padded._replace(weight=jnp.where(there, padded.weight, 0))
    chunks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), padded)

    def add(total: Vector, own: Data) -> tuple[Vector, None]:
        gradients = jax.vmap(one)(own)
        return trees.add(total, jax.tree.map(lambda g: jnp.sum(g, axis=0), gradients)), None

    total, _ = jax.lax.scan(add, trees.zeros(vector), chunks)
    return total


def private_gradient(
    problem: Problem,
    key: jax.Array,
    rate: float,
    bound: float,
    noise: float,
    capacity: int | None = None,
    chunk: int = 32,
) -> tuple[Vector, PoissonBatch]:
    """One private gradient of the mean loss.

    Args:
        problem: N examples in one batch.
        key: of the batch and the noise; keep it secret.
        rate: q.
        bound: C.
        noise: sigma; 0 is not private.
        capacity: rows of the batch; None: `default_capacity`.
        chunk: examples that are differentiated together.

    Returns:
        The gradient, a vector, and the batch.

    Raises:
        ValueError: microbatches, or weights: every example is drawn with the same probability.
    """
    if problem.microbatched:
        raise ValueError("problem: expected one batch of all examples, got microbatches")
    if problem.data.weight is not None:
        raise ValueError("problem.data.weight: expected None: leave rows of padding out")
    examples = number_of_examples(problem.data)
    rows = default_capacity(examples, rate) if capacity is None else capacity
    drawn = poisson_batch(jax.random.fold_in(key, 0), examples, rate, rows)
    batch = jax.tree.map(lambda x: x[drawn.indices], problem.data)
    total = clipped_sum(problem, batch._replace(weight=drawn.weight), bound, chunk)
    normal = trees.random_like(jax.random.fold_in(key, 1), total, "normal")
    noisy = trees.axpy(bound * noise, normal, total)
    return trees.scale(1 / (rate * examples), noisy), drawn
