r"""First-order alternation: the cheap way to solve a bi-level problem.

    min_u  L(w*(u), u)    with    w*(u) = argmin_w L(w, u)

Exact methods differentiate through the inner argmin. First-order alternation takes
gradient steps on w with u held still and, every so often, on u with w held still, as in
first-order DARTS (Liu et al. 2019, section 2.3, xi = 0).

Every step computes both gradients in one backward pass and applies one of them. A branch for
each level would save little (backpropagation reaches through w to u in any case), would compile
the loss twice, and would become a computation of both levels when `move_upper` is mapped.

    problem = alternating(loss, optax.adam(1e-3), optax.adam(1e-2))
    state = problem.init(w, u)
    for index in range(steps):
        state, aux = problem.step(state, (index + 1) % 5 == 0, batch)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmethods.bilevel.inner import settled
from jaxmethods.method import gradient_step


class AlternatingState(NamedTuple):
    """Both levels' variables with their optimizers' states."""

    lower: Any
    """w: the inner variable, a pytree."""
    upper: Any
    """u: the outer variable, a pytree."""
    lower_optimizer: optax.OptState
    upper_optimizer: optax.OptState


class Step(NamedTuple):
    """What one alternating step reports."""

    loss: jax.Array
    """[] the loss before the step."""
    gradient_norm: jax.Array
    """[] global norm of the gradient of the level that moved (the lower one in joint updates),
    before any clipping."""
    aux: Any
    """The loss function's second output."""


class Alternating(NamedTuple):
    """A pair of pure functions."""

    init: Callable[[Any, Any], AlternatingState]
    """(lower, upper) -> state."""
    step: Callable[..., tuple[AlternatingState, Step]]
    """(state, move_upper, *args) -> (state, report). `move_upper` is a bool [], traced or not:
    True moves the upper variable and leaves the lower one bit-identical, False the reverse. In
    joint updates the lower variable moves in any case. A keyword `upper_gradient` is taken for the
    upper variable's first-order gradient (see `one_step_gradient`)."""


def alternating(
    loss: Callable[..., tuple[jax.Array, Any]],
    lower_optimizer: optax.GradientTransformation,
    upper_optimizer: optax.GradientTransformation,
    joint: bool = False,
) -> Alternating:
    """Makes the alternating updates of `loss(lower, upper, *args) -> (scalar, aux)`.

    Args:
        loss: the objective of both levels; `args` reach it unchanged, so the two levels may be
            given different data by passing different `args`.
        lower_optimizer: any optax transformation, for the lower variable.
        upper_optimizer: any optax transformation, for the upper variable.
        joint: move both variables at once where `move_upper` is true: one level, the ablation.

    Returns:
        `init` and `step`, pure and jittable; `move_upper` may be traced and mapped.
    """

    def init(lower: optax.Params, upper: optax.Params) -> AlternatingState:
        return AlternatingState(
            lower, upper, _initial(lower_optimizer, lower), _initial(upper_optimizer, upper)
        )

    def step(
        state: AlternatingState,
        move_upper: jax.Array | bool,
        *args: Any,
        upper_gradient: Any = None,
    ) -> tuple[AlternatingState, Step]:
        (value, aux), (lower_gradient, first_order) = jax.value_and_grad(
            loss, argnums=(0, 1), has_aux=True
        )(state.lower, state.upper, *args)
        upper_gradient = first_order if upper_gradient is None else upper_gradient
        lower, lower_state = gradient_step(
            lower_optimizer, lower_gradient, state.lower_optimizer, state.lower
        )
        upper, upper_state = gradient_step(
            upper_optimizer, upper_gradient, state.upper_optimizer, state.upper
        )
        moved_lower = state._replace(lower=lower, lower_optimizer=lower_state)
        below = moved_lower if joint else state
        moved_upper = below._replace(upper=upper, upper_optimizer=upper_state)
        norm = optax.tree.norm(lower_gradient)
        if not joint:
            norm = jnp.where(move_upper, optax.tree.norm(upper_gradient), norm)
        return _where(move_upper, moved_upper, moved_lower), Step(value, norm, aux)

    return Alternating(init, step)


def _initial(optimizer: optax.GradientTransformation, variable: optax.Params) -> optax.OptState:
    state = jax.tree.map(jnp.asarray, optimizer.init(variable))
    return settled(lambda state: optimizer.update(variable, state, variable)[1], state)


def _where(condition: jax.Array | bool, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda y, n: jnp.where(condition, y, n), yes, no)
