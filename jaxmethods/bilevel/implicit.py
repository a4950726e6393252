r"""Hypergradients by the implicit function theorem.

Where grad_theta L(theta*, hyper) = 0, for a cotangent v of theta*

    eta = - (d^2 L / d hyper d theta) x,     (H + damping I) x = v,     H = grad_theta^2 L.

Only Hessian-vector products are needed, by forward over reverse. (Bengio 2000; Pedregosa 2016,
arXiv 1602.02355, with conjugate gradients; Lorraine et al. 2020, arXiv 1911.02590, with the Neumann
series, which after i terms is the gradient through i more steps of gradient descent.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmethods.bilevel.closure import at_least_single, combine, hoist, partition, typed_as
from jaxmethods.bilevel.inner import Batches, Problem, Solution, loop
from jaxmethods.bilevel.modes import Implicit


def implicit(
    problem: Problem,
    params: Any,
    opt_state: Any,
    hyper: Any,
    batches: Batches,
    mode: Implicit,
) -> Solution:
    """`inner.loop` whose final parameters are differentiated as a stationary point.

    The loss is that of the last batch. Gradients reach `hyper`, the floating leaves of that batch
    and what the loss closes over; those of the optimizer state and the losses are zero.

    Args:
        problem: the loss and the optimizer's arithmetic.
        params: the parameters it starts from, any pytree.
        opt_state: the optimizer's state at the start.
        hyper: the outer variable, any pytree.
        batches: what the T steps are given.
        mode: the linear solver, its steps and damping.

    Returns:
        The same `Solution` as `inner.loop`, with losses [T].
    """
    solution = jax.lax.stop_gradient(loop(problem, params, opt_state, hyper, batches))
    batch = jax.tree.map(lambda x: x[-1], batches.each)
    loss, closed = hoist(problem.loss, params, hyper, batch)
    return solution._replace(
        params=_stationary((loss, mode), solution.params, (closed, hyper, batch))
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _stationary(static: tuple[Callable, Implicit], params: Any, given: Any) -> Any:
    """The parameters themselves, as a function of what the loss is given."""
    return params


def _forward(static: tuple[Callable, Implicit], params: Any, given: Any) -> tuple[Any, Any]:
    return params, (params, given)


def _backward(static: tuple[Callable, Implicit], kept: Any, cotangent: Any) -> tuple[Any, Any]:
    (loss, mode), (params, given) = static, kept
    floats, rest = partition(given)

    def gradients(params: Any) -> tuple[Any, Any]:
        def inner(params: Any, floats: Any) -> jax.Array:
            closed, hyper, batch = combine(floats, rest)
            return loss(closed, params, hyper, batch)

        return jax.grad(inner, argnums=(0, 1))(params, floats)

    _, products = jax.linearize(gradients, params)

    def hessian(vector: Any) -> Any:
        product = products(typed_as(params, vector))[0]
        return jax.tree.map(lambda h, v: h.astype(v.dtype) + mode.damping * v, product, vector)

    # The products are those of the loss in its own precision; the sums of the solver are not.
    vector = jax.tree.map(lambda v: v.astype(at_least_single(v)), cotangent)
    along = _solve(hessian, vector, mode)
    # Conjugate gradients take a NaN for convergence, and would answer 0.
    leaves = jax.tree.leaves((params, vector))
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
    along = jax.tree.map(lambda p, x: jnp.where(finite, x, jnp.nan).astype(p.dtype), params, along)
    return jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.negative, products(along)[1])


_stationary.defvjp(_forward, _backward)


def _solve(hessian: Callable[[Any], Any], vector: Any, mode: Implicit) -> Any:
    if mode.solver == "cg":
        return jax.scipy.sparse.linalg.cg(
            hessian, vector, tol=mode.tolerance, maxiter=mode.iterations
        )[0]
    return _neumann(hessian, vector, mode)


def _neumann(hessian: Callable[[Any], Any], vector: Any, mode: Implicit) -> Any:
    """rate * sum_i (I - rate H)^i v, until a term is small."""
    stop = mode.tolerance * optax.tree.norm(vector)

    def go_on(carry: tuple[jax.Array, Any, Any]) -> jax.Array:
        index, term, _ = carry
        return (index < mode.iterations) & (optax.tree.norm(term) > stop)

    def add(carry: tuple[jax.Array, Any, Any]) -> tuple[jax.Array, Any, Any]:
        index, term, total = carry
        term = jax.tree.map(lambda t, h: t - mode.rate * h, term, hessian(term))
        return index + 1, term, jax.tree.map(jnp.add, total, term)

    _, _, total = jax.lax.while_loop(go_on, add, (jnp.int32(0), vector, vector))
    return jax.tree.map(lambda t: mode.rate * t, total)
