r"""Mixed-mode differentiation of the inner optimization, and its truncation.

The forward pass keeps (theta_t, s_t) of every step and nothing else. The backward pass carries the
adjoints lambda of theta and sigma of s; with (theta', s') = U(g, s, theta, hyper) the optimizer's
arithmetic and g = grad_theta loss, a step back is

    nu, sigma, lambda_U, eta_U = U'(g, s, theta, hyper)^T (lambda, sigma)
    (H nu, M nu) = d/d eps  grad_{theta, hyper} loss(theta + eps nu, hyper, batch)  at eps = 0
    lambda = lambda_U + H nu,      eta += eta_U + M nu.

Second derivatives are symmetric, so that ONE forward derivative of the gradient gives the
Hessian-vector and the mixed product, where reverse over reverse would differentiate a backward pass
once more. For SGD with momentum this is the adjoint nu <- beta nu - alpha lambda.
(Kemaev et al. 2025, "Scalable Meta-Learning via Mixed-Mode Differentiation", arXiv 2505.00793.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxmethods.bilevel.closure import (
    at_least_single,
    combine,
    hoist,
    is_float,
    partition,
    typed_as,
)
from jaxmethods.bilevel.inner import Batches, Problem, Solution, loop, step
from jaxmethods.bilevel.provenance import learned_leaves
from jaxmethods.bilevel.saving import Recipe, Saved, plan


def mixed(
    problem: Problem,
    params: Any,
    opt_state: Any,
    hyper: Any,
    batches: Batches,
    backward_batches: Any = None,
    save: bool = False,
) -> Solution:
    """`loop` with the derivative of this module.

    Gradients reach the initial parameters and optimizer state, `hyper`, the floating leaves of the
    batches (without `backward_batches`) and what the problem's functions close over.

    Args:
        problem: the loss and the optimizer's arithmetic.
        params: theta_0, any pytree.
        opt_state: s_0.
        hyper: the outer variable, any pytree.
        batches: what the T steps are given.
        backward_batches: what the backward pass takes for `batches.each`, with leading axis T;
            None: the same.
        save: keep what the forward pass has linearized (see `modes.Mixed`); static.

    Returns:
        theta_T, s_T and the losses [T].
    """
    problem, outer = _hoisted(problem, params, opt_state, hyper, batches)
    each = (batches.each, backward_batches)
    return _run((problem, batches.steps, save), params, opt_state, outer, *each)


def truncated(
    problem: Problem,
    params: Any,
    opt_state: Any,
    hyper: Any,
    batches: Batches,
    backward_batches: Any = None,
    last: int = 0,
    save: bool = False,
) -> Solution:
    """`mixed` through the last steps, after the others as a constant.

    Constants are what the others made of parameters and gradients; what the optimizer merely keeps
    in its state, such as a learning rate, is as much a variable as if its functions closed over it.

    Args:
        problem: the loss and the optimizer's arithmetic.
        params: theta_0, any pytree.
        opt_state: s_0.
        hyper: the outer variable, any pytree.
        batches: what the T steps are given.
        backward_batches: as in `mixed`, of all T steps.
        last: how many steps are differentiated through, 0 to T; static.
        save: as in `mixed`.

    Returns:
        theta_T, s_T and the losses [T].
    """
    first = batches.steps - last
    start, losses = (params, opt_state), jnp.zeros((0,))
    if first:
        start, losses = _head(problem, params, opt_state, hyper, batches.slice(0, first))
    tail = batches.slice(first, batches.steps)
    backward = jax.tree.map(lambda x: x[first:], backward_batches)
    solution = mixed(problem, *start, hyper, tail, backward, save)
    losses = jnp.concatenate([losses.astype(solution.losses.dtype), solution.losses])
    return solution._replace(losses=losses)


def _head(
    problem: Problem, params: Any, opt_state: Any, hyper: Any, batches: Batches
) -> tuple[tuple[Any, Any], jax.Array]:
    """Steps that nothing is differentiated through, but the leaves that know nothing of them."""
    frozen = jax.lax.stop_gradient
    learned = learned_leaves(problem.update, params, opt_state, hyper)

    def body(carry: tuple[Any, Any], batch: Any) -> tuple[tuple[Any, Any], jax.Array]:
        params, state = carry
        loss, gradient = jax.value_and_grad(problem.loss)(params, frozen(hyper), batch)
        params, state = problem.update(frozen(gradient), state, params, hyper)
        state = jax.tree.map(lambda leaf, stop: frozen(leaf) if stop else leaf, state, learned)
        return (frozen(params), state), frozen(loss)

    start = (frozen(params), opt_state)
    return jax.lax.scan(body, start, frozen(batches.each), batches.steps)


def _hoisted(
    problem: Problem, params: Any, opt_state: Any, hyper: Any, batches: Batches
) -> tuple[Problem, Any]:
    """The problem over (hyper, what its functions close over)."""
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batches.each)
    loss, loss_closed = hoist(problem.loss, params, hyper, batch)
    update, update_closed = hoist(problem.update, params, opt_state, params, hyper)
    hoisted = Problem(
        lambda params, outer, batch: loss(outer[1], params, outer[0], batch),
        lambda gradient, state, params, outer: update(outer[2], gradient, state, params, outer[0]),
    )
    return hoisted, (hyper, loss_closed, update_closed)


class _Kept(NamedTuple):
    """What the backward pass is given; pairs are `partition`s: differentiated or not."""

    trajectory: tuple[Any, Any]
    """(theta_t, s_t) before each step, leading axis T."""
    outer: tuple[Any, Any]
    each: tuple[Any, Any]
    """The batches of the backward pass."""
    saved: tuple[Recipe, Any, list, list] | None
    """With `save`: the recipe, gradients [T, ...], residuals of every step and of all steps."""


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(
    static: tuple[Problem, int, bool],
    params: Any,
    opt_state: Any,
    outer: Any,
    each: Any,
    backward_each: Any,
) -> Solution:
    problem, steps, _ = static
    return loop(problem, params, opt_state, outer, Batches(each, steps))


def _forward(static: tuple[Problem, int, bool], *arguments: Any) -> tuple[Solution, _Kept]:
    problem, steps, save = static
    values, perturbed = (
        [jax.tree.map(lambda x, name=name: getattr(x, name), tree) for tree in arguments]
        for name in ("value", "perturbed")
    )
    params, opt_state, outer, each, backward_each = values
    outer_parts, each_parts = partition(outer, perturbed[2]), partition(each, perturbed[3])
    if save and steps:
        return _forward_saving(problem, steps, params, opt_state, outer_parts, each_parts)

    def body(carry: tuple[Any, Any], batch: Any) -> tuple[Any, tuple]:
        after, loss = step(problem, outer, carry, batch)
        return after, (loss, carry)

    carry, (losses, trajectory) = jax.lax.scan(body, (params, opt_state), each, steps)
    if backward_each is not None:
        each_parts = (jax.tree.map(lambda _: None, each), backward_each)
    kept = _Kept(trajectory, outer_parts, each_parts, None)
    return Solution(carry[0], carry[1], losses), kept


def _forward_saving(
    problem: Problem, steps: int, params: Any, opt_state: Any, outer: tuple, each: tuple
) -> tuple[Solution, _Kept]:
    first = (params, jax.tree.map(lambda x: x[0], each))
    recipe = plan(partial(_linearize, problem), first, outer)
    whole = combine(*outer)

    def body(carry: tuple[Any, Any], batch: tuple[Any, Any]) -> tuple[Any, tuple]:
        params, opt_state = carry
        (loss, direct), saved = recipe.run((params, batch), outer)
        after = problem.update(direct[0], opt_state, params, whole)
        return after, (loss, carry, direct, saved.each)

    carry, (losses, *kept) = jax.lax.scan(body, (params, opt_state), each, steps)
    trajectory, direct, saved = kept
    _, (_, fixed) = recipe.run(first, outer)
    return Solution(carry[0], carry[1], losses), _Kept(
        trajectory, outer, each, (recipe, direct, saved, fixed)
    )


def _backward(static: tuple[Problem, int, bool], kept: _Kept, cotangents: Solution) -> tuple:
    problem, steps, _ = static
    losses = cotangents.losses
    losses = None if isinstance(losses, SymbolicZero) else losses
    adjoints = _Adjoints(
        *_instantiate((cotangents.params, cotangents.opt_state), kept.trajectory),
        outer=jax.tree.map(lambda x: jnp.zeros_like(x, dtype=at_least_single(x)), kept.outer[0]),
    )
    recipe, gradients, residuals, fixed = kept.saved or (None, None, None, [])

    def body(adjoints: _Adjoints, inputs: tuple) -> tuple[_Adjoints, Any]:
        carry, batch, loss, direct, saved = inputs
        at = (carry[0], batch)
        if recipe is None:
            (_, direct), products = _linearize(problem, at, kept.outer)
        else:
            products = recipe.restore(at, kept.outer, Saved(saved, fixed))
        return _step_back(problem, kept.outer, adjoints, carry, loss, direct, products)

    inputs = (kept.trajectory, kept.each, losses, gradients, residuals)
    adjoints, each = jax.lax.scan(body, adjoints, inputs, steps, reverse=True)
    return *adjoints[:2], typed_as(kept.outer[0], adjoints.outer), each, None


_run.defvjp(_forward, _backward, symbolic_zeros=True)


def _linearize(
    problem: Problem, at: tuple[Any, tuple[Any, Any]], outer: tuple[Any, Any]
) -> tuple[tuple[jax.Array, Any], Callable]:
    """Loss and gradients in (params, outer, batch); their derivative along a change of params."""
    params, batch = at

    def gradients(params: Any) -> tuple[Any, jax.Array]:
        def inner(params: Any, own: Any, given: Any) -> jax.Array:
            return problem.loss(params, combine(own, outer[1]), combine(given, batch[1]))

        both = jax.value_and_grad(inner, argnums=(0, 1, 2))
        loss, direct = both(params, outer[0], batch[0])
        return direct, loss

    direct, products, loss = jax.linearize(gradients, params, has_aux=True)
    return (loss, direct), products


class _Adjoints(NamedTuple):
    """Derivatives of the outer objective in what a step starts from; None for what has none."""

    params: Any
    """lambda."""
    opt_state: Any
    """sigma."""
    outer: Any
    """eta, summed over the steps after; in float32 at least, since there may be thousands."""


def _step_back(
    problem: Problem,
    outer: tuple[Any, Any],
    adjoints: _Adjoints,
    carry: tuple[Any, Any],
    loss: jax.Array | None,
    direct: tuple[Any, Any, Any],
    products: Callable,
) -> tuple[_Adjoints, Any]:
    """The adjoints before a step from those after it; also the derivative in the batch."""
    params, opt_state = carry
    state, state_rest = partition(opt_state)

    def update(gradient: Any, state: Any, params: Any, own: Any) -> tuple[Any, Any]:
        state = combine(state, state_rest)
        params, state = problem.update(gradient, state, params, combine(own, outer[1]))
        return params, partition(state)[0]

    # The gradient's own value is dead code where the optimizer is linear, as SGD is.
    _, pull = jax.vjp(update, direct[0], state, params, outer[0])
    along, state, through_update, own = pull((adjoints.params, adjoints.opt_state))
    curved = products(along)
    if loss is not None:
        curved = jax.tree.map(lambda c, d: (c + loss * d).astype(c.dtype), curved, direct)
    params = jax.tree.map(jnp.add, through_update, curved[0])
    eta = jax.tree.map(lambda a, b, c: a + b + c, adjoints.outer, own, curved[1])
    return _Adjoints(params, state, eta), curved[2]


def _instantiate(cotangents: Any, trajectory: Any) -> Any:
    """Zeros where a cotangent is known to be zero, None where the value has none."""

    def one(values: jax.Array, cotangent: Any) -> Any:
        if not is_float(values):
            return None
        if isinstance(cotangent, SymbolicZero):
            return jnp.zeros(values.shape[1:], values.dtype)
        return cotangent

    return jax.tree.map(one, trajectory, cotangents)
