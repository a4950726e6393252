"""Trace of the Hessian or the GGN from curvature at layers' products, exactly or with few probes.

For z_nt = a_nt W of example n (a bias is a row of W), W's own block of example n has the trace

    tr d^2 l_n / dW^2 = sum_{t, s} (a_nt . a_ns) tr d^2 l_n / dz_nt dz_ns

(the products that Botev et al., "Practical Gauss-Newton optimisation for deep learning", 2017,
make blocks of). Examples don't see each other, so one tangent in z serves all of them:
`exact_trace` takes one for each entry of z, however many weights W has, and `trace` draws signs for
every example apart, whose errors average out over examples, where signs in W are the same for all.
For T > 1 these are a common sign matrix between two vectors of signs an example (Wen et al.,
"Flipout", 2018). Layers are found as for gradients (`gradients.linear_layers`); parameters of none
have signs, or unit vectors, of their own. Both estimators are this library's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from jaxmethods.interpret import tangents, trees
from jaxmethods.interpret.curvature.operators import fingerprint
from jaxmethods.interpret.estimates import mean_of
from jaxmethods.interpret.gradients.linear_layers import Layers, linear_layers
from jaxmethods.interpret.losses import output_hessian
from jaxmethods.interpret.problem import Data, Estimate, Problem, first_batch, mean_over
from jaxmethods.interpret.trees import Vector
from jaxmethods.numerics.compiled import compiled

Matrix = Literal["hessian", "ggn"]
Point = tuple[list[jax.Array], Vector]
"""What is added to the layers' products, and the parameters of no layer."""


@compiled("probes", "together", "matrix")
def trace(
    problem: Problem,
    key: jax.Array,
    probes: int = 8,
    together: int = 8,
    matrix: Matrix = "hessian",
) -> Estimate:
    """The trace, with signs that every example draws anew.

    Args:
        problem: any; what is in no linear layer is probed as `hutchinson.trace` does.
        key: of the probes.
        probes: how many; a probe's error falls with the number of examples.
        together: how many are vectorized.
        matrix: "hessian" or "ggn".

    Returns:
        The trace [] with its standard error.

    Raises:
        ValueError: fewer than two probes, which have no spread, or another matrix.
    """
    if probes < 2:
        raise ValueError(f"probes: expected at least 2, got {probes}")
    _check(matrix)

    def samples(batch: Data) -> jax.Array:
        layers, point, product = _curvature(problem, batch, matrix)
        own = jax.random.fold_in(key, fingerprint(layers.outputs))  # microbatches draw differently

        def sample(key: jax.Array) -> jax.Array:
            drawn = _signs(key, layers, point)
            return trees.vdot(drawn, product(drawn))

        return jax.lax.map(sample, jax.random.split(own, probes), batch_size=min(together, probes))

    return mean_of(mean_over(problem, samples))


@compiled("together", "most", "matrix")
def exact_trace(
    problem: Problem, together: int = 32, most: int = 4096, matrix: Matrix = "hessian"
) -> Estimate:
    """The trace itself, from one tangent for each entry of the layers' products.

    Args:
        problem: any; every number in no linear layer takes a tangent, too.
        together: how many tangents are vectorized.
        most: how many tangents are too many.
        matrix: "hessian" or "ggn".

    Returns:
        The trace [], its error 0, and how many tangents it took.

    Raises:
        ValueError: more tangents than `most`, or another matrix.
    """
    _check(matrix)
    count = _directions(problem)
    if count > most:
        raise ValueError(
            f"most: expected at least {count}, the entries of all layers' products and the numbers "
            f"in no layer, got {most}; `trace` needs a few probes"
        )

    def total(batch: Data) -> jax.Array:
        layers, point, product = _curvature(problem, batch, matrix)
        inner = [jnp.einsum("nti,nsi->nts", a, a, precision=trees.PRECISE) for a in layers.inputs]

        def part(place: jax.Array) -> jax.Array:
            unit, weighted = _unit(place, inner, point)
            return trees.vdot(weighted, product(unit))

        parts = jax.lax.map(part, jnp.arange(count), batch_size=min(together, count))
        return jnp.sum(parts)

    value = mean_over(problem, total)
    return Estimate(value, jnp.zeros_like(value), jnp.asarray(count))


def _check(matrix: str) -> None:
    if matrix not in ("hessian", "ggn"):
        raise ValueError(f"matrix: expected 'hessian' or 'ggn', got {matrix!r}")


def _curvature(
    problem: Problem, batch: Data, matrix: Matrix
) -> tuple[Layers, Point, Callable[[Point], Point]]:
    """The layers of a batch, where they are, and products with the curvature of its total loss."""
    if matrix == "ggn":
        layers = linear_layers(problem.outputs, problem.floats, batch.inputs)
        point = (layers.offsets, layers.rest)
        outputs, jacobian, transposed = tangents.jacobian(lambda p: layers.run(*p), point)
        weight = problem.weights(batch, outputs.dtype).reshape(-1, *[1] * (outputs.ndim - 1))

        def product(moved: Point) -> Point:
            along = output_hessian(problem.loss, outputs, batch.targets, jacobian(moved))
            return transposed(weight * along)

        return layers, point, product
    layers = linear_layers(problem.losses, problem.floats, batch)
    point = (layers.offsets, layers.rest)

    def total(point: Point) -> jax.Array:
        losses = layers.run(*point)
        return jnp.sum(problem.weights(batch, losses.dtype) * losses)

    return layers, point, jax.linearize(jax.grad(total), point)[1]


def _signs(key: jax.Array, layers: Layers, point: Point) -> Point:
    """Tangents d with E d_nt d_ns^T = (a_nt . a_ns) 1, independent between examples and layers."""
    keys = jax.random.split(key, len(layers.inputs) + 1)

    def of_layer(key: jax.Array, a: jax.Array, offset: jax.Array) -> jax.Array:
        number, rows, width = a.shape
        out = offset.shape[-1]

        def signs(place: int, *shape: int) -> jax.Array:
            like = jax.ShapeDtypeStruct(shape, a.dtype)
            return trees.random_like(jax.random.fold_in(key, place), like)

        after = signs(0, number, 1, out)
        if rows == 1:
            return (jnp.sqrt(jnp.sum(a**2, -1, keepdims=True)) * after).reshape(offset.shape)
        moved = jnp.matmul(a * signs(1, number, 1, width), signs(2, width, out))
        return (moved * after).reshape(offset.shape)

    offsets = list(map(of_layer, keys, layers.inputs, point[0]))
    return offsets, trees.random_like(keys[-1], point[1])


def _unit(place: jax.Array, inner: list[jax.Array], point: Point) -> tuple[Point, Point]:
    """One entry of one layer's products in all examples, or one number in no layer; beside it what
    its curvature is to be multiplied with. `inner` is a_nt . a_ns [N, T, T] of every layer."""
    first = 0
    units, weighted = [], []
    for pairs, offset in zip(inner, point[0], strict=True):
        rows, out = pairs.shape[1], offset.shape[-1]
        own = (jnp.arange(rows * out) == place - first).astype(offset.dtype).reshape(rows, out)
        units.append(jnp.broadcast_to(own, (len(pairs), rows, out)).reshape(offset.shape))
        along = jnp.einsum("nts,so->nto", pairs, own, precision=trees.PRECISE)
        weighted.append(along.reshape(offset.shape))
        first += rows * out
    alone = jnp.arange(trees.size(point[1])) == place - first
    rest = trees.unravel(alone, point[1]) if alone.size else point[1]
    return (units, rest), (weighted, rest)


def _directions(problem: Problem) -> int:
    """Entries of the layers' products of one example, and numbers in no layer."""

    def shapes(batch: Data) -> tuple:
        layers = linear_layers(problem.losses, problem.floats, batch)
        return layers.offsets, layers.rest

    offsets, rest = jax.eval_shape(shapes, first_batch(problem))
    entries = sum(math.prod(offset.shape[1:]) for offset in offsets)
    return entries + sum(leaf.size for leaf in jax.tree.leaves(rest))
