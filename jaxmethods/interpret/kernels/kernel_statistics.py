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

from jaxmethods.numerics.precision import in_own_unit, power_of_two, wide


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
    positive = in_own_unit(jnp.maximum(values, 0))
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
    kernel, other = in_own_unit(kernel), in_own_unit(other)  # squares over- and underflow
    return jnp.vdot(kernel, other) / (jnp.linalg.norm(kernel) * jnp.linalg.norm(other))


def centered(kernel: jax.Array) -> jax.Array:
    """H K H with H = I - 1/N."""
    return _centered(kernel, jnp.ones(len(kernel), bool))


def _centered(kernel: jax.Array, there: jax.Array) -> jax.Array:
    """H K H of the examples that are there [N] bool; 0 in rows and columns of others."""
    pairs = there[:, None] & there
    kernel = jnp.where(pairs, wide(kernel), 0)
    count = jnp.maximum(jnp.sum(there, dtype=kernel.dtype), 1)
    rows = jnp.where(pairs, kernel - jnp.sum(kernel, axis=0, keepdims=True) / count, 0)
    return jnp.where(pairs, rows - jnp.sum(rows, axis=1, keepdims=True) / count, 0)


def label_alignment(kernel: jax.Array, labels: jax.Array, center: bool = False) -> jax.Array:
    """Alignment with the kernel that is 1 between examples of one class, [].

    Args:
        kernel: K [N, N].
        labels: [N] integers; examples without a label, which is negative, are left out.
        center: center both kernels.
    """
    there = labels >= 0
    pairs = there[:, None] & there
    kernel = jnp.where(pairs, wide(kernel), 0)
    target = (pairs & (labels[:, None] == labels)).astype(kernel.dtype)
    if center:
        kernel, target = _centered(kernel, there), _centered(target, there)
    return alignment(kernel, target)


def drift(before: jax.Array, after: jax.Array) -> jax.Array:
    """|K' - K|_F / |K|_F, []."""
    before, after = wide(before), wide(after)
    unit = power_of_two(jnp.max(jnp.abs(before)))
    return jnp.linalg.norm((after - before) / unit) / jnp.linalg.norm(before / unit)


def distance(before: jax.Array, after: jax.Array) -> jax.Array:
    """1 - alignment: 0 where only the scale has changed, []."""
    return 1 - alignment(before, after)
