"""How many dimensions features Z [N, D] use.

With singular values s of the centered features, p = s / sum s and q = s^2 / sum s^2:

    effective rank         exp(H(p))                          (Roy, Vetterli 2007; RankMe 2023)
    spectral entropy rank  exp(H(q))
    participation ratio    (sum s^2)^2 / sum s^4
    stable rank            sum s^2 / s_1^2
    alpha-ReQ              slope of log s_i^2 over log i       (Agrawal et al. 2022)

The two ranks of entropies are often both called "effective rank"; they differ in s against s^2.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.numerics.precision import in_own_unit, wide


class Geometry(NamedTuple):
    """All [] but for the singular values."""

    singular_values: jax.Array
    """[min(N, D)], descending, of the centered features."""
    effective_rank: jax.Array
    spectral_entropy_rank: jax.Array
    participation_ratio: jax.Array
    stable_rank: jax.Array
    power_law: jax.Array
    """alpha of s_i^2 ~ i^-alpha, by least squares over the values above rounding."""


def geometry(features: jax.Array) -> Geometry:
    """Ranks of features [N, D]; NaN where all features are equal."""
    features = wide(features)
    centered = features - jnp.mean(features, axis=0)
    s = jnp.linalg.svd(centered, compute_uv=False)
    squares = in_own_unit(s) ** 2  # none of the numbers below has a unit
    total = jnp.sum(squares)
    return Geometry(
        s,
        _entropy_rank(s),
        _entropy_rank(squares),
        total**2 / jnp.sum(squares**2),
        total / squares[0],
        _slope(squares),
    )


def _entropy_rank(values: jax.Array) -> jax.Array:
    share = values / jnp.sum(values)
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share, share)))


def _slope(squares: jax.Array) -> jax.Array:
    there = squares > squares[0] * len(squares) * jnp.finfo(squares.dtype).eps
    x = jnp.log(jnp.arange(1, len(squares) + 1, dtype=squares.dtype))
    y = jnp.log(jnp.where(there, squares, 1))
    count = jnp.sum(there)
    x_off = jnp.where(there, x - jnp.sum(jnp.where(there, x, 0)) / count, 0)
    return -jnp.sum(x_off * y) / jnp.sum(x_off**2)


def uniformity(features: jax.Array, temperature: float = 2.0) -> jax.Array:
    """log mean exp(-t |z_i - z_j|^2) over pairs of normalized features (Wang, Isola 2020), []."""
    features = wide(features)
    z = features / jnp.linalg.norm(features, axis=1, keepdims=True)
    squares = jnp.maximum(2 - 2 * z @ z.T, 0)
    pairs = ~jnp.eye(len(z), dtype=bool)
    return jax.nn.logsumexp(-temperature * squares, b=pairs) - jnp.log(jnp.sum(pairs))


def mean_cosine(features: jax.Array) -> jax.Array:
    """The mean cosine of two different rows: 1 where all point one way (oversmoothing), []."""
    features = wide(features)
    z = features / jnp.linalg.norm(features, axis=-1, keepdims=True)
    count = z.shape[-2]
    return (jnp.sum(jnp.sum(z, axis=-2) ** 2, axis=-1) - count) / (count * (count - 1))
