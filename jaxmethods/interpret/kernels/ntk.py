"""The empirical neural tangent kernel of a finite network.

    K[n, m] = J_n J_m^T  in  R^{C x C},    J_n = d f(theta, x_n) / d theta

(Jacot, Gabriel, Hongler 2018; algorithms: Novak, Sohl-Dickstein, Schoenholz, "Fast finite width
neural tangent kernel", 2022.) Four ways, the first three equal up to rounding:

    "jacobian"   contracts Jacobians of two chunks of examples; memory chunk x C x P
    "layers"     traced, from inputs and cotangents of linear layers (`gradients.linear_layers`) and
                 Jacobians of the rest; the fastest for networks of such layers
    "products"   K[:, m, :, c] = J (J_m^T e_c), by a cotangent and a tangent pass; no Jacobian
    `features`   J R^T / sqrt(k) for k random directions, whose Gram matrix is K in the mean, with
                 relative error ~ sqrt(2 / k); the directions are drawn anew, never stored

`of_losses` is the kernel of the examples' losses, one product for each.
Kinds: "full" [N, M, C, C], "traced" tr K / C, "pseudo" the kernel of (sum of outputs) / sqrt(C).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmethods.interpret import tangents, trees
from jaxmethods.interpret.gradients.linear_layers import gram, linear_layers
from jaxmethods.interpret.problem import Problem
from jaxmethods.interpret.trees import Vector
from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.precision import wide

Network = Callable[[Any, Any], jax.Array]
KINDS = ("full", "traced", "pseudo")
METHODS = ("jacobian", "products", "layers")


@compiled("apply", "kind", "method", "chunk")
def ntk(
    apply: Network,
    params: Any,
    inputs: Any,
    others: Any = None,
    kind: str = "traced",
    method: str = "jacobian",
    chunk: int = 64,
) -> jax.Array:
    """The kernel between inputs and others.

    Args:
        apply: (params, inputs [N, ...]) -> outputs [N, ...]; outputs are flattened to C.
        params: any pytree; its floating leaves count.
        inputs: N examples.
        others: M examples; None: the inputs themselves.
        kind: "full", "traced" or "pseudo".
        method: "jacobian", "products", or "layers" for the traced and the pseudo kernel of the
            inputs with themselves.
        chunk: examples of either side that are differentiated together.

    Returns:
        [N, M, C, C] or [N, M].

    Raises:
        ValueError: an unknown kind or method.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if method == "layers":
        if kind == "full" or others is not None:
            raise ValueError(
                'method: "layers" makes the kernel of inputs with themselves, traced or pseudo'
            )
        return _by_layers(outputs_of(apply, params, kind), trees.floats(params), inputs, chunk)
    others = inputs if others is None else others
    outputs = _outputs(apply, params, kind)
    way = _by_jacobians if method == "jacobian" else _by_products
    kernel = way(outputs, trees.floats(params), inputs, others, chunk)  # [N, M, C, C]
    if kind == "full":
        return kernel
    return jnp.trace(kernel, axis1=2, axis2=3) / kernel.shape[-1]


def _outputs(apply: Network, params: Any, kind: str) -> Callable[[Vector, Any], jax.Array]:
    """(vector, one example) -> outputs [C]."""

    def outputs(vector: Vector, example: Any) -> jax.Array:
        alone = jax.tree.map(lambda x: x[None], example)
        found = wide(apply(trees.merge(params, vector), alone)).reshape(-1)
        return found.sum(keepdims=True) / found.size**0.5 if kind == "pseudo" else found

    return outputs


def outputs_of(apply: Network, params: Any, kind: str) -> Callable[[Vector, Any], jax.Array]:
    """(vector, inputs) -> outputs [N, C], or [N, 1] of the pseudo kernel."""

    def outputs(vector: Vector, inputs: Any) -> jax.Array:
        found = wide(apply(trees.merge(params, vector), inputs))
        found = found.reshape(len(found), -1)
        if kind == "pseudo":
            return found.sum(axis=1, keepdims=True) / found.shape[1] ** 0.5
        return found

    return outputs


def _by_layers(
    outputs: Callable[[Vector, Any], jax.Array], vector: Vector, inputs: Any, chunk: int
) -> jax.Array:
    """tr K / C from inputs and cotangents of linear layers, and Jacobians of what is left."""
    layers = linear_layers(outputs, vector, inputs)
    count, size = layers.outputs.shape

    def of_output(place: jax.Array) -> jax.Array:
        unit = jnp.broadcast_to(jnp.arange(size) == place, (count, size))
        pulled = layers.pull(unit.astype(layers.outputs.dtype))
        return sum(map(gram, layers.inputs, pulled), jnp.zeros((count, count)))

    kernels = jax.lax.map(of_output, jnp.arange(size), batch_size=size)
    total = jnp.sum(kernels, axis=0)
    if jax.tree.leaves(layers.rest):

        def alone(rest: Vector, example: Any) -> jax.Array:
            one = jax.tree.map(lambda x: x[None], example)
            return outputs(trees.merge(vector, rest), one)[0]

        jacobian = jax.lax.map(
            lambda example: jax.jacrev(alone)(layers.rest, example),
            inputs,
            batch_size=_chunk(chunk, inputs),
        )
        flat = trees.ravel(jacobian, 2)  # [N, C, rest]
        total = total + jnp.einsum("ncp,mcp->nm", flat, flat, precision=trees.PRECISE)
    return total / size


def _chunk(chunk: int, inputs: Any) -> int:
    return min(chunk, jax.tree.leaves(inputs)[0].shape[0])


def _by_jacobians(
    outputs: Callable[[Vector, Any], jax.Array],
    vector: Vector,
    inputs: Any,
    others: Any,
    chunk: int,
) -> jax.Array:
    jacobian = jax.jacrev(outputs)

    def contract(a: jax.Array, b: jax.Array) -> jax.Array:
        # [C, ...] x [C, ...] -> [C, C]; vmap makes one matrix product of a chunk.
        a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
        return jnp.matmul(a, b.T, precision=trees.PRECISE)

    def row(example: Any) -> jax.Array:
        left = jacobian(vector, example)

        def entry(other: Any) -> jax.Array:
            right = jacobian(vector, other)
            return trees.total(jax.tree.map(contract, left, right))

        return jax.lax.map(entry, others, batch_size=_chunk(chunk, others))

    return jax.lax.map(row, inputs, batch_size=_chunk(chunk, inputs))


def _by_products(
    outputs: Callable[[Vector, Any], jax.Array],
    vector: Vector,
    inputs: Any,
    others: Any,
    chunk: int,
) -> jax.Array:
    along = tangents.jacobian(
        lambda vector: jax.vmap(outputs, (None, 0))(vector, inputs), vector
    ).product

    def column(other: Any) -> jax.Array:
        value, cotangents = jax.vjp(lambda vector: outputs(vector, other), vector)
        units = jnp.eye(value.size, dtype=value.dtype)
        return jax.vmap(lambda unit: along(cotangents(unit)[0]))(units)  # [C', N, C]

    columns = jax.lax.map(column, others, batch_size=_chunk(chunk, others))  # [M, C', N, C]
    return columns.transpose(2, 0, 3, 1)


@compiled("chunk")
def of_losses(problem: Problem, chunk: int = 64) -> jax.Array:
    """Inner products of the gradients of all examples' losses, without keeping a gradient.

    The kernel of a model with many outputs an example, such as the tokens of a sequence, along
    what its loss sees of them.

    Args:
        problem: one batch of N examples.
        chunk: gradients that are in memory together.

    Returns:
        [N, N].
    """
    vector = problem.floats
    along = tangents.jacobian(lambda vector: problem.losses(vector, problem.data), vector).product

    def column(example: Any) -> jax.Array:
        alone = jax.tree.map(lambda x: x[None], example)
        return along(jax.grad(lambda vector: problem.losses(vector, alone)[0])(vector))

    rows = problem.data._replace(weight=None)
    return jax.lax.map(column, rows, batch_size=_chunk(chunk, rows))


@compiled("apply", "dimension", "kind", "together")
def features(
    apply: Network,
    params: Any,
    inputs: Any,
    key: jax.Array,
    dimension: int = 4096,
    kind: str = "full",
    together: int = 16,
) -> jax.Array:
    """Random features whose inner products are the kernel in the mean.

    Args:
        apply: (params, inputs [N, ...]) -> outputs [N, ...].
        params: any pytree; its floating leaves count.
        inputs: N examples.
        key: of the random signs; the same key belongs to the same directions.
        dimension: k.
        kind: "full", or "pseudo" for the sum of outputs.
        together: directions that are vectorized.

    Returns:
        [N, C, k]: K[n, m] ~ features[n] @ features[m].T.
    """
    outputs, vector = _outputs(apply, params, kind), trees.floats(params)
    along = tangents.jacobian(
        lambda vector: jax.vmap(outputs, (None, 0))(vector, inputs), vector
    ).product
    keys = jax.random.split(key, dimension)
    moved = jax.lax.map(
        lambda key: along(trees.random_like(key, vector)),
        keys,
        batch_size=min(together, dimension),
    )
    return jnp.moveaxis(moved, 0, -1) / dimension**0.5
