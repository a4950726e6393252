r"""First-order alternation: the cheap way to solve a bi-level problem.

    min_u  L(w*(u), u)    with    w*(u) = argmin_w L(w, u)

Exact methods differentiate through the inner argmin. First-order alternation takes
gradient steps on w with u held still and, every so often, on u with w held still, as in
first-order DARTS (Liu et al. 2019, section 2.3, xi = 0). Each step computes the gradient
of the variable it moves and of no other.

    problem = alternating(loss, optax.adam(1e-3), optax.adam(1e-2))
    state = problem.init(w, u)
    for index in range(steps):
        state, aux = problem.step(state, (index + 1) % 5 == 0, batch)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax


class AlternatingState(NamedTuple):
    """Both levels' variables with their optimizers' states."""

    lower: optax.Params
    """w: the inner variable, a pytree."""
    upper: optax.Params
    """u: the outer variable, a pytree."""
    lower_optimizer: optax.OptState
    upper_optimizer: optax.OptState


class Step(NamedTuple):
    """What one alternating step reports."""

    loss: jax.Array
    """[] the loss before the step."""
    gradient_norm: jax.Array
    """[] global norm of the gradient of the level that moved, before any clipping."""
    aux: Any
    """The loss function's second output."""


class Alternating(NamedTuple):
    """A pair of pure functions."""

    init: Callable[[optax.Params, optax.Params], AlternatingState]
    """(lower, upper) -> state."""
    step: Callable[..., tuple[AlternatingState, Step]]
    """(state, move_upper, *args) -> (state, report). `move_upper` is a bool [], traced or not:
    True moves the upper variable and leaves the lower one bit-identical, False the reverse."""


def alternating(
    loss: Callable[..., tuple[jax.Array, Any]],
    lower_optimizer: optax.GradientTransformation,
    upper_optimizer: optax.GradientTransformation,
) -> Alternating:
    """Makes the alternating updates of `loss(lower, upper, *args) -> (scalar, aux)`.

    Args:
        loss: the objective of both levels; `args` reach it unchanged, so the two levels may be
            given different data by passing different `args`.
        lower_optimizer: any optax transformation, for the lower variable.
        upper_optimizer: any optax transformation, for the upper variable.

    Returns:
        `init` and `step`; `step` is jittable, and under `jax.vmap` it stays a branch (not a
        computation of both levels) as long as `move_upper` itself is not mapped.
    """

    def init(lower: optax.Params, upper: optax.Params) -> AlternatingState:
        return AlternatingState(
            lower, upper, lower_optimizer.init(lower), upper_optimizer.init(upper)
        )

    def move_lower(state: AlternatingState, args: tuple) -> tuple[AlternatingState, Step]:
        (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(
            state.lower, state.upper, *args
        )
        updates, optimizer = lower_optimizer.update(gradient, state.lower_optimizer, state.lower)
        lower = optax.apply_updates(state.lower, updates)
        report = Step(value, optax.tree.norm(gradient), aux)
        return state._replace(lower=lower, lower_optimizer=optimizer), report

    def move_upper(state: AlternatingState, args: tuple) -> tuple[AlternatingState, Step]:
        def upper_loss(upper: optax.Params) -> tuple[jax.Array, Any]:
            return loss(state.lower, upper, *args)

        (value, aux), gradient = jax.value_and_grad(upper_loss, has_aux=True)(state.upper)
        updates, optimizer = upper_optimizer.update(gradient, state.upper_optimizer, state.upper)
        upper = optax.apply_updates(state.upper, updates)
        report = Step(value, optax.tree.norm(gradient), aux)
        return state._replace(upper=upper, upper_optimizer=optimizer), report

    def step(
        state: AlternatingState, upper: jax.Array | bool, *args: Any
    ) -> tuple[AlternatingState, Step]:
        return jax.lax.cond(upper, move_upper, move_lower, state, args)

    return Alternating(init, step)
