"""Curvature as linear operators on parameter pytrees, never as matrices.

    Hessian      H v = d/dt grad L(theta + t v)                   (Pearlmutter 1994)
    GGN          G v = (1/W) sum_i w_i J_i^T H_i J_i v            (Schraudolph 2002)
    Fisher       F v = (1/W) sum_i w_i E_{y ~ p(.|x_i)} g_i(y) g_i(y)^T v
    empirical    E v = (1/W) sum_i w_i g_i g_i^T v

with Jacobians J_i of the outputs, output Hessians H_i of the loss and per-example gradients g_i.
For cross entropy and for unit-noise squared error the exact Fisher is the GGN.

An `Operator` is a pytree: compiled functions take it as an argument and are reused for other
parameters. `prepare` does once what all products share (`jax.linearize`), so that many products
with one operator cost a tangent pass each. Products are over all microbatches of the problem.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from jaxmethods.interpret import tangents, trees
from jaxmethods.interpret.losses import output_hessian
from jaxmethods.interpret.problem import Data, Problem, mean_over
from jaxmethods.interpret.trees import Vector
from jaxmethods.numerics.precision import wide

Product = Callable[[Vector], Vector]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Operator:
    """A symmetric linear map of vectors that are shaped like `like`."""

    prepare: Callable[[Any], Product] = field(metadata={"static": True})
    """context -> product; what products share is computed by the first call."""
    context: Any
    """A pytree that `prepare` takes: a problem, or other operators."""
    like: Vector

    def product(self) -> Product:
        """v -> A v, to be called many times inside one program."""
        return self.prepare(self.context)

    def __call__(self, vector: Vector) -> Vector:
        return self.product()(vector)

    @property
    def dimension(self) -> int:
        """P, the number of entries of a vector."""
        return trees.size(self.like)


def hessian(problem: Problem) -> Operator:
    """The Hessian of the mean loss.

    Args:
        problem: the model, its loss and its data. A ReLU network's kinks have no curvature here.

    Returns:
        An operator on the problem's floating parameters.
    """
    return Operator(_hessian, problem, problem.floats)


def ggn(problem: Problem) -> Operator:
    """The generalized Gauss-Newton matrix of the mean loss, positive semidefinite.

    Args:
        problem: the model, its loss (convex in the outputs) and its data.

    Returns:
        An operator on the problem's floating parameters.
    """
    return Operator(_ggn, problem, problem.floats)


def empirical_fisher(problem: Problem) -> Operator:
    """Second moments of per-example gradients at the given targets, positive semidefinite.

    Args:
        problem: the model, its loss and its data.

    Returns:
        An operator on the problem's floating parameters. It is not the Fisher information (Kunstner
        et al. 2019): targets are those of the data.
    """
    return Operator(_empirical_fisher, problem, problem.floats)


def fisher(problem: Problem, key: jax.Array, samples: int = 1) -> Operator:
    """The Fisher information with targets drawn from the model: the GGN in the mean over keys.

    Args:
        problem: a loss with `sample`.
        key: of the draws, the same in every product.
        samples: draws for each example.

    Returns:
        An operator on the problem's floating parameters.

    Raises:
        ValueError: the loss can't draw targets, or `samples` is less than one.
    """
    if problem.loss.sample is None:
        raise ValueError("problem.loss: expected one that can draw targets, got sample=None")
    if samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}")
    return Operator(_fisher, (problem, jax.random.split(key, samples)), problem.floats)


def block(operator: Operator, keep: Callable[[str], bool]) -> Operator:
    """The diagonal block of some leaves, such as one layer: everything else is held fixed.

    Args:
        operator: of all parameters.
        keep: of a leaf's name as `jax.tree_util.keystr` writes it, e.g.
            `lambda name: "layer_3" in name`.

    Returns:
        An operator whose vectors have None where `keep` is false.

    Raises:
        ValueError: no leaf is kept; the message names those there are.
    """

    def own(path: Any, leaf: jax.Array) -> jax.Array | None:
        return leaf if keep(jax.tree_util.keystr(path)) else None

    like = jax.tree_util.tree_map_with_path(own, operator.like)
    if not jax.tree.leaves(like):
        named = jax.tree_util.tree_leaves_with_path(operator.like)
        names = [jax.tree_util.keystr(path) for path, _ in named]
        raise ValueError(f"keep: expected to keep a leaf, got none of {', '.join(names)}")
    return Operator(_block, (operator, like), like)


def shift(operator: Operator, amount: Any) -> Operator:
    """A + c I.

    Args:
        operator: A.
        amount: c, [].

    Returns:
        An operator with the vectors of A.
    """
    return Operator(_shift, (operator, jnp.asarray(amount)), operator.like)


def dense(matrix: jax.Array) -> Operator:
    """A symmetric matrix [P, P] as an operator on arrays [P], in float32 at least."""
    matrix = wide(matrix)
    return Operator(_dense, matrix, matrix[0])


def to_matrix(operator: Operator) -> jax.Array:
    """All entries [P, P], in the order of the leaves; for small problems.

    Args:
        operator: any.

    Returns:
        [P, P].
    """
    product = operator.product()

    def column(unit: jax.Array) -> jax.Array:
        return trees.ravel(product(trees.unravel(unit, operator.like)))

    units = jnp.eye(operator.dimension, dtype=trees.dtype(operator.like))
    return jax.vmap(column, out_axes=1)(units)


def _over_batches(problem: Problem, of_batch: Callable[[Data], Product]) -> Product:
    """The mean of products over microbatches; one batch is linearized once for all vectors."""
    if not problem.microbatched:
        product = of_batch(problem.data)
        return lambda vector: mean_over(problem, lambda _: product(vector))
    return lambda vector: mean_over(problem, lambda batch: of_batch(batch)(vector))


def _hessian(problem: Problem) -> Product:
    def of_batch(batch: Data) -> Product:
        def total(vector: Vector) -> jax.Array:
            losses = problem.losses(vector, batch)
            return jnp.sum(problem.weights(batch, losses.dtype) * losses)

        return jax.linearize(jax.grad(total), problem.floats)[1]

    return _over_batches(problem, of_batch)


def _ggn(problem: Problem) -> Product:
    def of_batch(batch: Data) -> Product:
        outputs, jacobian, transposed = tangents.jacobian(
            lambda vector: problem.outputs(vector, batch.inputs), problem.floats
        )
        weight = problem.weights(batch, outputs.dtype).reshape(-1, *[1] * (outputs.ndim - 1))

        def product(vector: Vector) -> Vector:
            moved = jacobian(vector)
            return transposed(weight * output_hessian(problem.loss, outputs, batch.targets, moved))

        return product

    return _over_batches(problem, of_batch)


def _gradient_outer(problem: Problem, batch: Data) -> Product:
    """v -> sum_i w_i g_i (g_i . v), by a tangent and a cotangent pass over per-example losses."""
    losses, gradients, transposed = tangents.jacobian(
        lambda vector: problem.losses(vector, batch), problem.floats
    )
    return lambda vector: transposed(problem.weights(batch, losses.dtype) * gradients(vector))


def _empirical_fisher(problem: Problem) -> Product:
    return _over_batches(problem, lambda batch: _gradient_outer(problem, batch))


def _fisher(context: tuple[Problem, jax.Array]) -> Product:
    problem, keys = context
    loss, sample = problem.loss, problem.loss.sample
    assert sample is not None

    def of_batch(batch: Data) -> Product:
        outputs, jacobian, transposed = tangents.jacobian(
            lambda vector: problem.outputs(vector, batch.inputs), problem.floats
        )
        weight = problem.weights(batch, outputs.dtype)
        own = fingerprint(outputs)  # microbatches draw differently

        def one(key: jax.Array) -> jax.Array:
            drawn = sample(jax.random.fold_in(key, own), outputs, batch.targets)
            return jax.grad(lambda outputs: jnp.sum(loss.value(outputs, drawn)))(outputs)

        slopes = jax.lax.map(one, keys)  # [S, N, ...], of the losses in the outputs
        flat = slopes.reshape(*slopes.shape[:2], -1)  # [S, N, K]

        def product(vector: Vector) -> Vector:
            moved = jacobian(vector).reshape(flat.shape[1:])  # [N, K]
            # Contractions, not sums of products: XLA on CPU (jax 0.10.2, YNN) computes those wrong
            # for many vectors at once.
            along = jnp.einsum("snk,nk->sn", flat, moved) * weight / len(flat)
            return transposed(jnp.einsum("snk,sn->nk", flat, along).reshape(outputs.shape))

        return product

    return _over_batches(problem, of_batch)


def fingerprint(outputs: jax.Array) -> jax.Array:
    """A number that differs between batches, uint32 []."""
    flat = outputs.astype(jnp.float32).reshape(-1)
    return jnp.sum(jax.lax.bitcast_convert_type(flat, jnp.uint32), dtype=jnp.uint32)


def _block(context: tuple[Operator, Vector]) -> Product:
    operator, like = context
    product = operator.product()
    zero = trees.zeros(operator.like)

    def restricted(vector: Vector) -> Vector:
        whole = product(trees.merge(zero, vector))
        return jax.tree.map(
            lambda own, full: None if own is None else full,
            like,
            whole,
            is_leaf=lambda x: x is None,
        )

    return restricted


def _shift(context: tuple[Operator, jax.Array]) -> Product:
    operator, amount = context
    product = operator.product()
    return lambda vector: trees.axpy(amount, vector, product(vector))


def _dense(matrix: jax.Array) -> Product:
    return lambda vector: jnp.matmul(matrix, vector, precision=trees.PRECISE)
