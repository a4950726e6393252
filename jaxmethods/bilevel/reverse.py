r"""Reverse mode over the scan of the inner steps, with a choice of what is kept.

With T steps, P numbers in parameters and optimizer state and R residuals a step, memory is of order
T (P + R) without rematerialization, T P + R with it in every step, and 2 sqrt(T) P + R where only
every sqrt(T)-th state is kept and the steps between two of them are run once more.
(Griewank 1992 on such schedules; Chen et al. 2016, arXiv 1604.06174, on sqrt.)
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxmethods.bilevel.inner import Batches, Problem, Solution, loop, step
from jaxmethods.bilevel.modes import Remat

CARRY = "bilevel_carry"


def reverse(
    problem: Problem, params: Any, opt_state: Any, hyper: Any, batches: Batches, remat: Remat
) -> Solution:
    """`inner.loop` that `jax.grad` goes through as `remat` says (see `modes.Reverse`).

    Args:
        problem: the loss and the optimizer's arithmetic.
        params: theta_0, any pytree.
        opt_state: s_0.
        hyper: the outer variable, any pytree.
        batches: what the T steps are given.
        remat: what is kept for the backward pass; static.

    Returns:
        theta_T, s_T and the losses [T].

    Raises:
        ValueError: `offload` on a device without host memory of its own.
    """
    if remat == "none":
        return loop(problem, params, opt_state, hyper, batches)
    if remat == "sqrt":
        return _in_chunks(problem, params, opt_state, hyper, batches)
    if remat == "offload":
        _check_host_memory()
    return _remat_loop(problem, params, opt_state, hyper, batches, remat == "offload")


def _remat_loop(
    problem: Problem,
    params: Any,
    opt_state: Any,
    hyper: Any,
    batches: Batches,
    offload: bool = False,
) -> Solution:
    """Keeps the carry of every step and computes the rest again."""

    def body(carry: tuple[Any, Any], batch: Any) -> tuple[tuple[Any, Any], jax.Array]:
        if offload:
            carry = jax.tree.map(lambda x: checkpoint_name(x, CARRY), carry)
        return step(problem, hyper, carry, batch)

    policy = None
    if offload:
        policy = jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[CARRY],
            offload_src="device",
            offload_dst="pinned_host",
        )
    # A scan is a loop of its own: nothing to protect from common subexpressions.
    body = jax.checkpoint(body, prevent_cse=False, policy=policy)
    carry, losses = jax.lax.scan(body, (params, opt_state), batches.each, batches.steps)
    return Solution(carry[0], carry[1], losses)


def _in_chunks(
    problem: Problem, params: Any, opt_state: Any, hyper: Any, batches: Batches
) -> Solution:
    """sqrt(T) chunks of sqrt(T) steps, and what is left over; only a chunk's start is kept."""
    size = max(1, math.isqrt(batches.steps))
    number = batches.steps // size

    def run(carry: tuple[Any, Any], each: Any, length: int) -> tuple[tuple[Any, Any], jax.Array]:
        solution = _remat_loop(problem, *carry, hyper, Batches(each, length))
        return (solution.params, solution.opt_state), solution.losses

    whole = jax.tree.map(
        lambda x: x[: number * size].reshape(number, size, *x.shape[1:]), batches.each
    )
    carry, losses = jax.lax.scan(
        jax.checkpoint(lambda c, each: run(c, each, size), prevent_cse=False),
        (params, opt_state),
        whole,
        number,
    )
    left = batches.slice(number * size, batches.steps)
    carry, rest = jax.checkpoint(lambda c, each: run(c, each, left.steps))(carry, left.each)
    return Solution(carry[0], carry[1], jnp.concatenate([losses.reshape(-1), rest]))


def _check_host_memory() -> None:
    device = jax.devices()[0]
    kinds = {memory.kind for memory in device.addressable_memories()}
    if device.platform == "cpu" or "pinned_host" not in kinds:
        raise ValueError(
            "remat='offload' needs a device with host memory beside its own, such as a GPU or TPU; "
            f"{device.device_kind} has {', '.join(sorted(kinds))}: use 'step' or 'sqrt' there"
        )
