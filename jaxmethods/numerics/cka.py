"""Similarity of two representations of the same examples.

    CKA(X, Y) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))

(Kornblith et al., "Similarity of neural network representations revisited", 2019); with linear
kernels |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F) of centered features, invariant to rotations and scale
but not to general linear maps. The biased form is close to 1 for N < D even of noise;
`unbiased_cka` (Song et al. 2012; Nguyen et al. 2021) isn't, and may be averaged over minibatches.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmethods.numerics.linalg import thin_svd
from jaxmethods.numerics.precision import in_own_unit, wide


def linear_cka(x: jax.Array, y: jax.Array) -> jax.Array:
    """CKA with linear kernels of features [N, D] and [N, E], []."""
    _check(x, y)
    x, y = _centered(x), _centered(y)
    cross = jnp.sum((y.T @ x) ** 2)
    return cross / (jnp.linalg.norm(x.T @ x) * jnp.linalg.norm(y.T @ y))


def rbf_kernel(x: jax.Array, scale: float = 1.0) -> jax.Array:
    """exp(-|x - x'|^2 / (2 (scale m)^2)) with the median distance m, [N, N]."""
    x = _centered(x)
    squares = jnp.sum(x**2, axis=1)
    distances = jnp.maximum(squares[:, None] + squares - 2 * x @ x.T, 0)
    median = jnp.median(distances[jnp.triu_indices(len(x), 1)])
    return jnp.exp(-distances / (2 * scale**2 * median))


def kernel_cka(k: jax.Array, l: jax.Array) -> jax.Array:  # noqa: E741
    """CKA of two kernel matrices [N, N], []."""
    _check(k, l)
    k, l = wide(k), wide(l)  # noqa: E741
    centering = jnp.eye(len(k), dtype=k.dtype) - 1 / len(k)
    k, l = (in_own_unit(centering @ own @ centering) for own in (k, l))  # noqa: E741
    return jnp.vdot(k, l) / (jnp.linalg.norm(k) * jnp.linalg.norm(l))


def unbiased_hsic(k: jax.Array, l: jax.Array) -> jax.Array:  # noqa: E741
    """HSIC_1 of kernel matrices [N, N], N >= 4, unbiased over draws of the examples, []."""
    _check(k, l)
    k, l = wide(k), wide(l)  # noqa: E741
    n = len(k)
    if n < 4:
        raise ValueError(f"k: expected at least 4 examples, got {n}")
    off = ~jnp.eye(n, dtype=bool)
    k, l = jnp.where(off, k, 0), jnp.where(off, l, 0)  # noqa: E741
    row_k, row_l = jnp.sum(k, axis=1), jnp.sum(l, axis=1)
    first = jnp.vdot(k, l)
    second = jnp.sum(row_k) * jnp.sum(row_l) / ((n - 1) * (n - 2))
    third = 2 * jnp.vdot(row_k, row_l) / (n - 2)
    return (first + second - third) / (n * (n - 3))


def unbiased_cka(x: jax.Array, y: jax.Array) -> jax.Array:
    """CKA of unbiased HSIC with linear kernels of features [N, D] and [N, E], []."""
    x, y = _centered(x), _centered(y)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    return unbiased_hsic(k, l) / jnp.sqrt(unbiased_hsic(k, k) * unbiased_hsic(l, l))


def svcca(x: jax.Array, y: jax.Array, variance: float = 0.99) -> jax.Array:
    """Mean canonical correlation of the directions that carry this share of each variance, [].

    (Raghu et al. 2017.)
    """
    _check(x, y)

    def basis(features: jax.Array) -> tuple[jax.Array, jax.Array]:
        left, values, _ = thin_svd(_centered(features))
        share = jnp.cumsum(values**2) / jnp.sum(values**2)
        kept = jnp.concatenate([jnp.ones(1, bool), share[:-1] < variance])
        return jnp.where(kept, left, 0), jnp.sum(kept)

    (one, many), (other, more) = basis(x), basis(y)
    correlations = jnp.linalg.svd(one.T @ other, compute_uv=False)
    return jnp.sum(correlations) / jnp.minimum(many, more)


def procrustes(x: jax.Array, y: jax.Array) -> jax.Array:
    """Squared distance of centered, normalized features [N, D] after the best rotation, []."""
    _check(x, y)

    def unit(features: jax.Array) -> jax.Array:
        centered = _centered(features)
        return centered / jnp.linalg.norm(centered)

    return 2 - 2 * jnp.sum(jnp.linalg.svd(unit(x).T @ unit(y), compute_uv=False))


def _centered(features: jax.Array) -> jax.Array:
    """Features less their mean, with which products would lose their digits, in their own unit."""
    features = wide(features)
    return in_own_unit(features - jnp.mean(features, axis=0))


def _check(x: jax.Array, y: jax.Array) -> None:
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(f"expected two matrices with as many rows, got {x.shape} and {y.shape}")
