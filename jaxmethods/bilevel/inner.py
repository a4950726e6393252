r"""The inner optimisation: T optimizer steps on a loss, as one `lax.scan`.

g_t = grad_theta loss(theta_t, hyper, batch_t)
theta_{t+1}, s_{t+1} = update(g_t, s_t, theta_t, hyper)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax


class Problem(NamedTuple):
    """The two functions that make a step."""

    loss: Callable[[Any, Any, Any], jax.Array]
    """(params, hyper, batch) -> []."""
    update: Callable[[Any, Any, Any, Any], tuple[Any, Any]]
    """(gradient, opt_state, params, hyper) -> (params, opt_state): the optimizer's arithmetic."""


class Solution(NamedTuple):
    """Where the inner optimisation ended."""

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
    """One step from (params, opt_state); also the loss before it."""
    params, opt_state = carry
    loss, gradient = jax.value_and_grad(problem.loss)(params, hyper, batch)
    return problem.update(gradient, opt_state, params, hyper), loss


def loop(problem: Problem, params: Any, opt_state: Any, hyper: Any, batches: Batches) -> Solution:
    """All steps; differentiating through it is plain reverse mode."""

    def body(carry: tuple[Any, Any], batch: Any) -> tuple[tuple[Any, Any], jax.Array]:
        return step(problem, hyper, carry, batch)

    carry, losses = jax.lax.scan(body, (params, opt_state), batches.each, batches.steps)
    return Solution(carry[0], carry[1], losses)
