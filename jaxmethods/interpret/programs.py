"""What rows and pictures of a report are made of: each is compiled once, for all that need it.

Compiling takes most of a report's time, by far. Rows that look at the same thing (three at the
losses, three at the spectrum) call the same program and differ in arithmetic on what
it returns. A program isn't optimized on CPU (`compiled_quickly`), and one that maps over examples
or probes holds one copy of the model, whatever their number.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.interpret.curvature import hutchinson, operators, slq
from jaxmethods.interpret.dynamics import sharpness
from jaxmethods.interpret.dynamics.landscape import loss_slice, random_direction
from jaxmethods.interpret.generalization import norms
from jaxmethods.interpret.gradients import noise_scale
from jaxmethods.interpret.kernels import ntk
from jaxmethods.interpret.problem import (
    Data,
    Estimate,
    Problem,
    map_batches,
    one_batch,
)
from jaxmethods.numerics.compiled import compiled_quickly
from jaxmethods.numerics.predictions import right


class Effort(NamedTuple):
    """How much a level spends; hashable, hence static."""

    steps: int
    """Steps of a Lanczos recurrence."""
    probes: int
    """Random vectors of a trace."""
    spectra: int
    """Probes of spectral densities."""
    kernel: int
    """Examples of the tangent kernel, at most."""


@compiled_quickly()
def losses(problem: Problem) -> tuple[jax.Array, jax.Array]:
    """Losses and weights of all examples, [N] each."""
    joined = one_batch(problem)
    found = joined.losses(joined.floats, joined.data)
    return found, joined.weights(joined.data, found.dtype)


@compiled_quickly()
def weights(problem: Problem) -> jax.Array:
    """Weights of all examples, [N]."""
    return problem.weights(one_batch(problem).data, jnp.float32)


class Predicted(NamedTuple):
    """What a classifier says of every target, [N, T]: T targets an example."""

    margin: jax.Array
    """Own logit minus the largest other one."""
    confidence: jax.Array
    right: jax.Array
    weight: jax.Array
    """The example's, over the number of its targets; 0 for those that don't count."""


@compiled_quickly()
def predicted(problem: Problem) -> Predicted:
    """Margins and probabilities of a classifier, microbatch by microbatch.

    Args:
        problem: logits [N, ..., C] and integer targets [N, ...].

    Returns:
        [N, T] each; logits of one microbatch are in memory.
    """

    def of_batch(batch: Data) -> Predicted:
        logits = problem.outputs(problem.floats, batch.inputs)
        logits = logits.reshape(len(logits), -1, logits.shape[-1])  # [B, T, C]
        targets = jnp.reshape(batch.targets, logits.shape[:2])
        p = jax.nn.softmax(logits, axis=-1)
        counted = (targets >= 0).astype(p.dtype)
        share = counted / jnp.maximum(jnp.sum(counted, axis=1, keepdims=True), 1)
        return Predicted(
            norms.margins(logits, jnp.maximum(targets, 0)),
            jnp.max(p, axis=-1),
            right(logits, targets).astype(p.dtype),
            share * problem.weights(batch, p.dtype)[:, None],
        )

    if not problem.microbatched:
        return of_batch(problem.data)
    found = map_batches(problem, of_batch)
    return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), found)  # [K B, T]


class Gradients(NamedTuple):
    """What gradients of a problem say, []."""

    norm: jax.Array
    noise_scale: jax.Array


@compiled_quickly()
def gradients(problem: Problem) -> Gradients:
    """The norm of the mean gradient, and the noise of the examples' gradients."""
    found = noise_scale.noise_scale(problem)
    return Gradients(jnp.sqrt(found.squared_norm), found.unbiased)


@compiled_quickly()
def ascent(problem: Problem) -> jax.Array:
    """How far the loss rises at distance 0.05 along the gradient."""
    return sharpness.ascent_sharpness(problem, 0.05)


@compiled_quickly("effort")
def spectrum(problem: Problem, key: jax.Array, effort: Effort) -> slq.Spectrum:
    """Quadratures of the Hessian's spectrum."""
    return slq.spectrum(operators.hessian(problem), key, effort.steps, effort.spectra)


@compiled_quickly("effort", "kind")
def trace(problem: Problem, key: jax.Array, effort: Effort, kind: str) -> Estimate:
    """The trace of the Hessian or of the Gauss-Newton matrix.

    Args:
        problem: whose curvature.
        key: of the probes.
        effort: how many probes.
        kind: "hessian" or "ggn".

    Returns:
        [] with its standard error.
    """
    operator = operators.ggn(problem) if kind == "ggn" else operators.hessian(problem)
    return hutchinson.trace(operator, key, effort.probes)


@compiled_quickly("effort")
def flatness(problem: Problem, key: jax.Array, effort: Effort) -> sharpness.Flatness:
    """The noise that raises the loss by 0.1."""
    return sharpness.pac_bayes_flatness(problem, key, draws=effort.probes, steps=12)


@compiled_quickly()
def kernel(problem: Problem, places: jax.Array | np.ndarray) -> jax.Array:
    """The traced tangent kernel [n, n] of the examples at n places; of models with few outputs."""
    rows = jax.tree.map(lambda x: x[places], one_batch(problem).data.inputs)
    return ntk.ntk(problem.apply, problem.params, rows, method="products", chunk=8)


@compiled_quickly()
def gradient_kernel(problem: Problem, places: jax.Array | np.ndarray) -> jax.Array:
    """Inner products [n, n] of the gradients of the losses of the examples at n places."""
    joined = one_batch(problem)
    rows = jax.tree.map(lambda x: x[places], joined.data)
    return ntk.of_losses(replace(joined, data=rows), chunk=8)


@compiled_quickly()
def landscape(problem: Problem, key: jax.Array, points: jax.Array) -> jax.Array:
    """The loss in a random plane, in lengths of the weights.

    Args:
        problem: whose loss, and whose parameters are the origin.
        key: of the two directions.
        points: coefficients [n, 2]; n is a multiple of 5, as points are vectorized: what is left
            over of a round would be a second copy of the model.

    Returns:
        [n].
    """
    directions = tuple(random_direction(own, problem.params) for own in jax.random.split(key))
    return loss_slice(problem, directions, points, 5)


@compiled_quickly()
def outputs(problem: Problem) -> jax.Array:
    """Outputs of all examples, [N, ...]."""
    joined = one_batch(problem)
    return joined.outputs(joined.floats, joined.data.inputs)
