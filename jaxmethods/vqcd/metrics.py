"""What continual learners are judged by (Continual World, Wolczyk et al. 2021, arXiv 2105.10919).

    P = mean_j perf[j, I],    F_j = perf[j, j] - perf[j, I],    FT_j = (AUC_j - ref_j) / (1 - ref_j)

Row j of the matrix is the evaluated task, column i the task after whose training it is evaluated.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def final_performance(matrix: jax.Array) -> jax.Array:
    """The mean [] over tasks after the last of them; matrix [..., I, I]."""
    return matrix[..., :, -1].mean(-1)


def forgetting(matrix: jax.Array) -> jax.Array:
    """What every task [..., I] lost between its own training and the end; matrix [..., I, I]."""
    return jnp.diagonal(matrix, axis1=-2, axis2=-1) - matrix[..., :, -1]


def mean_forgetting(matrix: jax.Array) -> jax.Array:
    """The mean [] over all tasks but the last, which had no time to be forgotten; 0 for one."""
    lost = forgetting(matrix)[..., :-1]
    return lost.mean(-1) if lost.shape[-1] else jnp.zeros(matrix.shape[:-2])


def area_under_curve(curve: jax.Array) -> jax.Array:
    """The trapezoid rule over [0, 1] of equally spaced values [..., P]."""
    inner = curve.sum(-1) - (curve[..., 0] + curve[..., -1]) / 2
    return inner / (curve.shape[-1] - 1)


def forward_transfer(curve: jax.Array, reference: jax.Array) -> jax.Array:
    """How much sooner a task is learned than alone; curves [..., P] of successes in [0, 1].

    Args:
        curve: performance over a task's own training within the sequence, equally spaced.
        reference: the same for training on this task alone, from scratch.

    Returns:
        [...]; 0 where both are alike, NaN where learning alone left nothing to gain (scores may be
        above 1, and a loss over what is negative would be a gain).
    """
    area, alone = area_under_curve(curve), area_under_curve(reference)
    left = jnp.where(alone < 1.0, 1.0 - alone, jnp.nan)
    return jnp.where(area == alone, 0.0, (area - alone) / left)
