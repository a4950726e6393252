"""One inner optimization, differentiable in every way that `modes` names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmethods.bilevel.closure import is_float
from jaxmethods.bilevel.implicit import implicit
from jaxmethods.bilevel.inner import Batches, Problem, Solution, settled
from jaxmethods.bilevel.mixed import mixed, truncated
from jaxmethods.bilevel.modes import (
    Implicit,
    Mixed,
    Mode,
    Reverse,
    Truncated,
    check_count,
    check_mode,
)
from jaxmethods.bilevel.reverse import reverse
from jaxmethods.method import gradient_step

Optimizer = optax.GradientTransformation | Callable[[Any], optax.GradientTransformation]


def solve(
    loss: Callable[[Any, Any, Any], jax.Array],
    optimizer: Optimizer,
    params: Any,
    hyper: Any,
    batches: Any = None,
    *,
    steps: int | None = None,
    mode: Mode = Mixed(),  # noqa: B008
    backward_batches: Any = None,
) -> Solution:
    """Runs T optimizer steps on a loss, and can be differentiated through.

    Pure: jit it, vmap it over problems, take `jax.grad` of whatever is made of its result.

        def outer(hyper):
            solution = bilevel.solve(loss, optax.sgd(0.1), params, hyper, keys)
            return validation_loss(solution.params)

        hypergradient = jax.jit(jax.grad(outer))(hyper)

    Args:
        loss: `loss(params, hyper, batch) -> []`, the inner objective. Where it is differentiated
            twice (every mode), the second time is forward, except in `Reverse`.
        optimizer: any optax transformation, or `hyper -> transformation` where the outer variable
            is in it, e.g. `lambda hyper: optax.sgd(hyper["rate"])`. Adam and its kin need
            `eps_root > 0` to be differentiated where a gradient may be exactly zero: the root's
            derivative is infinite there.
        params: theta_0, any pytree of floating arrays.
        hyper: the outer variable: any pytree of arrays (data, labels, weights, rates, graphs).
            Leaves that are not floating are passed on and have no gradient.
        batches: what each step is given, a pytree with leading axis T: minibatches, indices, keys
            of noise. None: nothing, `steps` times; the loss is called with None then.
        steps: T, where `batches` doesn't tell it.
        mode: how the backward pass works; see the table of `jaxmethods.bilevel`. Static.
        backward_batches: as `batches`; the gradients that the adjoint evaluates again are given
            these. The result is then NOT the gradient of the function; for parity with codes that
            draw new noise in their backward pass. `Mixed(save=False)` and `Truncated` only.

    Returns:
        Final parameters, optimizer state and the inner losses [T].

    Gradients reach `params`, `hyper`, floating leaves of `batches` and arrays that `loss` or
    `optimizer` close over; exceptions: `Truncated` (K < T) and `Implicit` give zero for the initial
    parameters, `Implicit` gives it for all but the final parameters and the last batch, and with
    `backward_batches` the batches get zero.

    Raises:
        ValueError: lengths of `batches` and `steps` that disagree or are no whole numbers,
            parameters that are not floating, what is no mode or no optimizer, a mode that doesn't
            do what is asked for.
    """
    check_mode(mode)
    params = jax.tree.map(jnp.asarray, params)
    hyper = jax.tree.map(jnp.asarray, hyper)
    _check_floating(params)
    stacked = Batches(batches, _number_of_steps(batches, steps))
    _check_mode(mode, stacked, backward_batches)
    cut = isinstance(mode, Truncated) and mode.steps < stacked.steps
    start = jax.lax.stop_gradient(params) if cut else params
    update, opt_state = _updates(optimizer, start, hyper)
    problem = (Problem(loss, update), params, opt_state, hyper, stacked)
    match mode:
        case Reverse(remat):
            return reverse(*problem, remat)
        case Mixed(save):
            return mixed(*problem, backward_batches, save)
        case Truncated(last, save):
            return truncated(*problem, backward_batches, last, save)
        case Implicit():
            return implicit(*problem, mode)


def _updates(optimizer: Optimizer, params: Any, hyper: Any) -> tuple[Callable, Any]:
    """The optimizer's arithmetic as a function of `hyper`, and its initial state."""

    def at(hyper: Any) -> optax.GradientTransformation:
        made = optimizer(hyper) if callable(optimizer) else optimizer
        if not isinstance(made, optax.GradientTransformation):
            raise ValueError(
                "optimizer must be an optax transformation or a function of hyper that makes one, "
                f"got {type(made).__name__}"
            )
        return made

    def update(gradient: Any, opt_state: Any, params: Any, hyper: Any) -> tuple[Any, Any]:
        return gradient_step(at(hyper), gradient, opt_state, params)

    state = jax.tree.map(jnp.asarray, at(hyper).init(params))
    after = lambda state: update(params, state, params, hyper)[1]  # noqa: E731
    return update, settled(after, state)


def _number_of_steps(batches: Any, steps: int | None) -> int:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batches)]
    if () in shapes:
        raise ValueError("batches must have a leading axis of steps, got one with no axis")
    lengths = {shape[0] for shape in shapes}
    if steps is not None:
        lengths.add(check_count("steps", steps, 0))
    if not lengths:
        raise ValueError("give batches with a leading axis of steps, or steps")
    if len(lengths) > 1:
        raise ValueError(f"the leading axes of batches and steps must agree, got {sorted(lengths)}")
    return lengths.pop()


def _check_floating(params: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not is_float(leaf):
            name = jax.tree_util.keystr(path) or "params"
            raise ValueError(f"params must be floating, got {leaf.dtype} at {name}")


def _check_mode(mode: Mode, batches: Batches, backward_batches: Any) -> None:
    if isinstance(mode, Truncated) and mode.steps > batches.steps:
        raise ValueError(f"Truncated({mode.steps}) of only {batches.steps} steps")
    if isinstance(mode, Implicit) and not batches.steps:
        raise ValueError("Implicit needs at least one step")
    if backward_batches is None:
        return
    if not isinstance(mode, Mixed | Truncated) or mode.save:
        raise ValueError(f"backward_batches is for Mixed and Truncated without save, got {mode}")
    shapes, backward = (
        jax.tree.map(lambda x: (x.shape, x.dtype), tree)
        for tree in (batches.each, backward_batches)
    )
    if shapes != backward:
        raise ValueError(f"backward_batches must be shaped as batches: {shapes}, got {backward}")
