r"""The inner optimization: T optimizer steps on a loss, as one `lax.scan`.

g_t = grad_theta loss(theta_t, hyper, batch_t)
theta_{t+1}, s_{t+1} = update(g_t, s_t, theta_t, hyper)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmethods.bilevel.closure import is_float


class Problem(NamedTuple):
    """The two functions that make a step."""

    loss: Callable[[Any, Any, Any], jax.Array]
    """(params, hyper, batch) -> []."""
    update: Callable[[Any, Any, Any, Any], tuple[Any, Any]]
    """(gradient, opt_state, params, hyper) -> (params, opt_state): the optimizer's arithmetic."""


class Solution(NamedTuple):
    """Where the inner optimization ended."""

    params: Any
    """theta_T, in the structure of the initial parameters."""
    opt_state: optax.OptState
    losses: jax.Array
    """[T] the inner loss before each step."""


class Batches(NamedTuple):
    """What the steps are given."""

    each: Any
    """A pytree with leading axis T, or None."""
    steps: int
    """T."""

    def slice(self, start: int, stop: int) -> Batches:
        """The batches of steps start to stop - 1."""
        return Batches(jax.tree.map(lambda x: x[start:stop], self.each), stop - start)


def step(
    problem: Problem, hyper: Any, carry: tuple[Any, Any], batch: Any
) -> tuple[tuple[Any, Any], jax.Array]:
    """One step from (params, opt_state); also the loss before it.

    Args:
        problem: the loss and the optimizer's arithmetic.
        hyper: the outer variable, any pytree.
        carry: (params, opt_state).
        batch: what this step is given, or None.

    Returns:
        (params, opt_state) after the step, and the loss before it, [].
    """
    params, opt_state = carry
    loss, gradient = jax.value_and_grad(problem.loss)(params, hyper, batch)
    return problem.update(gradient, opt_state, params, hyper), loss


def loop(problem: Problem, params: Any, opt_state: Any, hyper: Any, batches: Batches) -> Solution:
    """All steps; differentiating through it is plain reverse mode.

    Args:
        problem: the loss and the optimizer's arithmetic.
        params: theta_0, any pytree.
        opt_state: s_0.
        hyper: the outer variable, any pytree.
        batches: what the T steps are given.

    Returns:
        theta_T, s_T and the losses [T].
    """

    def body(carry: tuple[Any, Any], batch: Any) -> tuple[tuple[Any, Any], jax.Array]:
        return step(problem, hyper, carry, batch)

    carry, losses = jax.lax.scan(body, (params, opt_state), batches.each, batches.steps)
    return Solution(carry[0], carry[1], losses)


def settled(after: Callable[[Any], Any], state: Any) -> Any:
    """An optimizer's state in the types that its steps give it, so that it can be carried.

    A float32 rate widens a bfloat16 momentum at the first step, for one.

    Args:
        after: state -> the state after a step; only its types are asked for.
        state: as the optimizer has initialized it.
    """
    while True:
        wider = jax.tree.map(_widened, state, jax.eval_shape(after, state))
        if all(map(_same_type, *map(jax.tree.leaves, (state, wider)))):
            return wider
        state = wider


def _widened(leaf: jax.Array, after: Any) -> jax.Array:
    if not (is_float(leaf) and is_float(after)):
        return leaf
    return leaf.astype(jnp.promote_types(leaf.dtype, after.dtype))


def _same_type(one: jax.Array, other: jax.Array) -> bool:
    return one.dtype == other.dtype
