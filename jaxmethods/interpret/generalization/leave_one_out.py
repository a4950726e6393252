"""What a model would predict without one of its examples, without retraining it N times.

    ridge          e_i^loo = r_i / (1 - h_ii),                    h = X (X^T X + lam I)^-1 X^T
    kernel ridge   e_i^loo = (A^-1 y)_i / (A^-1)_ii,              A = K + lam I
    network        f_i^loo ~ f_i + h_i (I - H_i h_i)^-1 g_i,      h_i = J_i A^-1 J_i^T,
                   A = sum_i J_i^T H_i J_i + N lam I,  g_i, H_i the loss's slope and Hessian in f_i

The first two are exact (Allen 1974), the last one Newton step from the trained parameters, exact
for ridge regression (Beirami et al. 2017; Giordano et al. 2019).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.interpret.kernels.ntk import ntk
from jaxmethods.interpret.losses import output_hessian
from jaxmethods.interpret.problem import Problem, one_batch
from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.precision import wide


class RidgeLeaveOneOut(NamedTuple):
    """Ridge regression and its N deletions."""

    weights: jax.Array
    """[d]."""
    leverages: jax.Array
    """[N], h_ii."""
    residuals: jax.Array
    """[N], y - f."""
    loo_residuals: jax.Array
    """[N], of the model without the example."""
    mean_square: jax.Array
    """[], of those."""
    gcv: jax.Array
    """[], N sum r^2 / (N - tr h)^2 (Golub, Heath, Wahba 1979)."""
    degrees_of_freedom: jax.Array
    """[], tr h."""
    change: jax.Array
    """[N, d], weights without the example minus weights."""
    influence: jax.Array
    """[N, d], its first order: change = influence / (1 - h_ii)."""


def ridge_leave_one_out(inputs: jax.Array, targets: jax.Array, penalty: float) -> RidgeLeaveOneOut:
    """All deletions of ridge regression |X w - y|^2 + lam |w|^2, exactly.

    Args:
        inputs: X [N, d].
        targets: y [N].
        penalty: lam, not divided by N.

    Returns:
        Weights, residuals, their leave-one-out values and changes.
    """
    inputs, targets, count = wide(inputs), wide(targets), len(inputs)
    gram = inputs.T @ inputs + penalty * jnp.eye(inputs.shape[1], dtype=inputs.dtype)
    both = jnp.linalg.solve(gram, jnp.concatenate([(inputs.T @ targets)[:, None], inputs.T], 1))
    weights, influence_of = both[:, 0], both[:, 1:].T  # [d], [N, d]
    residuals = targets - inputs @ weights
    leverages = jnp.sum(inputs * influence_of, axis=1)
    loo = residuals / (1 - leverages)
    influence = -influence_of * residuals[:, None]
    freedom = jnp.sum(leverages)
    return RidgeLeaveOneOut(
        weights,
        leverages,
        residuals,
        loo,
        jnp.mean(loo**2),
        count * jnp.sum(residuals**2) / (count - freedom) ** 2,
        freedom,
        influence / (1 - leverages)[:, None],
        influence,
    )


def kernel_leave_one_out(kernel: jax.Array, targets: jax.Array, penalty: float) -> jax.Array:
    """Residuals [N] of kernel ridge regression without each example, from K [N, N] and y [N]."""
    kernel, targets = wide(kernel), wide(targets)
    inverse = jnp.linalg.inv(kernel + penalty * jnp.eye(len(kernel), dtype=kernel.dtype))
    return inverse @ targets / jnp.diag(inverse)


class Stability(NamedTuple):
    """How much the loss on new points changes when one example is deleted, []."""

    uniform: jax.Array
    """The largest change."""
    hypothesis: jax.Array
    """The mean change."""


def loss_stability(losses: jax.Array, losses_without: jax.Array) -> Stability:
    """Empirical stabilities (Bousquet, Elisseeff 2002).

    Args:
        losses: on M points [M].
        losses_without: of the models without example i, [N, M].

    Returns:
        Lower bounds of the suprema over all points.
    """
    change = jnp.abs(losses_without - losses)
    return Stability(jnp.max(change), jnp.mean(change))


@compiled("penalty", "chunk")
def network_leave_one_out(problem: Problem, penalty: float, chunk: int = 64) -> jax.Array:
    """Outputs [N, C] of every example as the network without it would predict them.

    From the kernel of all outputs, [N C, N C]; for small N C. Parameters should be a minimum of
    sum of losses + N penalty |theta|^2 / 2.

    Args:
        problem: N examples of C outputs each, all of weight one.
        penalty: lam > 0, weight decay of the mean loss.
        chunk: examples that are differentiated together.

    Returns:
        [N, C].

    Raises:
        ValueError: a penalty that is not positive, or weights.
    """
    if penalty <= 0:
        raise ValueError(f"penalty: expected more than 0, got {penalty}")
    if problem.data.weight is not None:
        raise ValueError("problem.data.weight: expected None")
    problem = one_batch(problem)
    inputs, targets = problem.data.inputs, problem.data.targets
    outputs = problem.outputs(problem.floats, inputs)  # [N, C]
    count, classes = outputs.shape
    kernel = ntk(problem.apply, problem.params, inputs, kind="full", chunk=chunk)
    slopes = jax.grad(lambda f: jnp.sum(problem.loss.value(f, targets)))(outputs)
    units = jnp.broadcast_to(jnp.eye(classes, dtype=outputs.dtype), (count, classes, classes))
    hessians = jax.vmap(
        lambda unit: output_hessian(problem.loss, outputs, targets, unit), in_axes=1, out_axes=2
    )(units)  # [N, C, C]
    # J A^-1 J^T = (K^-1 + H / (N lam))^-1 / (N lam) = (I + K H / (N lam))^-1 K / (N lam)
    flat = kernel.transpose(0, 2, 1, 3).reshape(count * classes, -1) / (count * penalty)
    curved = jnp.einsum("amc,mcd->amd", flat.reshape(-1, count, classes), hessians)
    whole = jnp.eye(len(flat), dtype=flat.dtype) + curved.reshape(flat.shape)
    inner = jnp.linalg.solve(whole, flat).reshape(count, classes, count, classes)
    own = jnp.einsum("icid->icd", inner)  # h_i
    eye = jnp.eye(classes, dtype=outputs.dtype)

    def without(h: jax.Array, hessian: jax.Array, slope: jax.Array) -> jax.Array:
        return h @ jnp.linalg.solve(eye - hessian @ h, slope)

    return outputs + jax.lax.map(lambda x: without(*x), (own, hessians, slopes))
