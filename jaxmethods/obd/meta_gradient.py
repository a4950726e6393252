r"""The meta-gradient: what the synthetic pairs have to become for their clone to act better.

    theta_{t+1} = theta_t - alpha_0 v_{t+1},    v_{t+1} = beta_0 v_t + grad_theta l_BC(theta_t, D)
    G = d/dD  H(theta_T(D)),                    t = 0, ..., T - 1

through `bilevel.solve`, exact in every mode; the action noise of step t is the same forward and
backward. The published code draws new noise in its backward pass, which gives the gradient of no
function; `backward_noise` is for comparing with it.

Lei, Zhang and Tao, NeurIPS 2024, arXiv 2410.22728, section 4.3 and algorithm 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax

from jaxmethods import bilevel
from jaxmethods.obd.config import OBDConfig
from jaxmethods.obd.objectives import OuterBatch, Sample, bc_loss, outer_loss
from jaxmethods.obd.types import SynSet
from jaxmethods.offline_rl.policies import policy_sample

MODES: dict[str, bilevel.Mode] = {
    "mixed": bilevel.Mixed(),
    "mixed_saved": bilevel.Mixed(save=True),
    "reverse": bilevel.Reverse(),
    "remat": bilevel.Reverse("step"),
}
"""The exact ones, by the names of `OBDConfig.mode`."""


class MetaGradient(NamedTuple):
    """An outer loss and its gradient."""

    loss: jax.Array
    """[]"""
    gradient: SynSet
    """dH/dD, shaped as the synthetic set."""
    inner_losses: jax.Array
    """[T] l_BC before each step."""


def mode_of(config: OBDConfig) -> bilevel.Mode:
    """The mode of `bilevel.solve` that a config asks for."""
    if config.truncate is None:
        return MODES[config.mode]
    last = min(config.truncate, config.inner_steps)
    return bilevel.Truncated(last, save=config.mode == "mixed_saved")


def inner_train(
    params: Any,
    syn: SynSet,
    noise: jax.Array,
    lr: jax.Array | float = 0.1,
    momentum: jax.Array | float | None = None,
    *,
    sample: Sample = policy_sample,
    size: jax.Array | int | None = None,
    mode: bilevel.Mode = MODES["mixed"],
    backward_noise: jax.Array | None = None,
) -> tuple[Any, jax.Array]:
    """Clones the synthetic set: T full-batch steps of SGD from `params`.

    Args:
        params: theta_0 of the student whose `sample` is given.
        syn: D, the N synthetic pairs.
        noise: [T, N, A] of the sampled actions.
        lr: alpha_0; may be traced.
        momentum: beta_0; may be traced. None saves the velocity's memory.
        sample: (params, states, noise) -> sampled actions; static.
        size: clone only this many of the first pairs; may be traced.
        mode: how to differentiate; see `bilevel.solve`.
        backward_noise: [T, N, A]; makes the gradient that of the published code.

    Returns:
        theta_T and the losses [T]. Differentiable in `params` and `syn`.
    """

    def loss(params: Any, syn: SynSet, noise: jax.Array) -> jax.Array:
        return bc_loss(params, syn, noise, sample, size)

    solution = bilevel.solve(
        loss,
        optax.sgd(lr, momentum),
        params,
        syn,
        noise,
        mode=mode,
        backward_batches=backward_noise,
    )
    return solution.params, solution.losses


def meta_gradient(
    syn: SynSet,
    params: Any,
    noise: jax.Array,
    batch: OuterBatch,
    lr: jax.Array | float = 0.1,
    momentum: jax.Array | float | None = None,
    *,
    sample: Sample = policy_sample,
    size: jax.Array | int | None = None,
    mode: bilevel.Mode = MODES["mixed"],
    backward_noise: jax.Array | None = None,
) -> MetaGradient:
    """The outer loss of the clone and its gradient in the synthetic set.

    Args:
        syn: D, the N synthetic pairs.
        params: theta_0 of the student.
        noise: [T, N, A] of the sampled actions.
        batch: B rows that the clone is judged on.
        lr, momentum, sample, size, mode, backward_noise: see `inner_train`.

    Returns:
        H [], dH/dD in the structure of `syn`, and the inner losses [T].
    """

    def outer(syn: SynSet) -> tuple[jax.Array, jax.Array]:
        clone, losses = inner_train(
            params,
            syn,
            noise,
            lr,
            momentum,
            sample=sample,
            size=size,
            mode=mode,
            backward_noise=backward_noise,
        )
        return outer_loss(clone, batch, sample), losses

    (loss, losses), gradient = jax.value_and_grad(outer, has_aux=True)(syn)
    return MetaGradient(loss, gradient, losses)
