"""Numbers of a kernel matrix K [N, N]: spectrum, ranks, alignment with labels, drift.

effective rank     exp(-sum_i p_i log p_i),  p = lambda / sum lambda        (Roy, Vetterli 2007)
participation      (sum lambda)^2 / sum lambda^2
label alignment    <K, Y Y^T> / (|K| |Y Y^T|), Y one-hot, plain and centered (Cortes et al. 2012)
drift              |K' - K|_F / |K|_F
distance           1 - <K, K'> / (|K| |K'|)                                  (Fort et al. 2020)
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.numerics.precision import wide


class KernelStatistics(NamedTuple):
    """All [] but for the eigenvalues."""

    eigenvalues: jax.Array
    """[N], ascending."""
    effective_rank: jax.Array
    participation_ratio: jax.Array
    condition_number: jax.Array
    """Largest over smallest eigenvalue; infinite where the smallest is not positive."""


def kernel_statistics(kernel: jax.Array) -> KernelStatistics:
    """Spectrum and ranks of a symmetric positive semidefinite matrix [N, N]."""
    values = jnp.linalg.eigvalsh(wide(kernel))
    positive = jnp.maximum(values, 0)
    share = positive / jnp.sum(positive)
    smallest = values[0]
    condition = jnp.where(smallest > 0, values[-1] / jnp.where(smallest > 0, smallest, 1), jnp.inf)
    return KernelStatistics(
        values,
        jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share, share))),
        jnp.sum(positive) ** 2 / jnp.sum(positive**2),
        condition,
    )


def alignment(kernel: jax.Array, other: jax.Array) -> jax.Array:
    """<K, K'> / (|K| |K'|) of two matrices, []."""
    return jnp.vdot(kernel, other) / (jnp.linalg.norm(kernel) * jnp.linalg.norm(other))


def centered(kernel: jax.Array) -> jax.Array:
    """H K H with H = I - 1/N."""
    rows = kernel - jnp.mean(kernel, axis=0, keepdims=True)
    return rows - jnp.mean(rows, axis=1, keepdims=True)


def label_alignment(kernel: jax.Array, labels: jax.Array, center: bool = False) -> jax.Array:
    """Alignment with the kernel that is 1 between examples of one class, []."""
    target = (labels[:, None] == labels).astype(kernel.dtype)
    if center:
        kernel, target = centered(kernel), centered(target)
    return alignment(kernel, target)


def drift(before: jax.Array, after: jax.Array) -> jax.Array:
    """|K' - K|_F / |K|_F, []."""
    return jnp.linalg.norm(after - before) / jnp.linalg.norm(before)


def distance(before: jax.Array, after: jax.Array) -> jax.Array:
    """1 - alignment: 0 where only the scale has changed, []."""
    return 1 - alignment(before, after)
