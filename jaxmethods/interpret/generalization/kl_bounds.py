"""Bounds of a mean of losses in [0, 1] from its sample mean, by the binary relative entropy.

    kl(q, p) = q log(q / p) + (1 - q) log((1 - q) / (1 - p)),
    kl^-1(q, c) = sup {p : kl(q, p) <= c}

With probability 1 - delta over n examples, for all posteriors Q at once:

    Maurer / Seeger    risk <= kl^-1(empirical risk, (KL(Q, P) + log(2 sqrt n / delta)) / n)
    McAllester         risk <= empirical risk + sqrt((KL(Q, P) + log(2 sqrt n / delta)) / (2 n))

and for one fixed predictor, or the mean of M independent draws, c = log(2 / delta) / M.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

STEPS = 60
"""Bisections: more than a float64 has bits in [0, 1)."""


def binary_kl(q: jax.Array, p: jax.Array) -> jax.Array:
    """kl(q, p), entrywise; infinite where p is 0 or 1 and q isn't."""
    entropy = jax.scipy.special.xlogy
    return entropy(q, q) + entropy(1 - q, 1 - q) - entropy(q, p) - _xlog1py(1 - q, -p)


def _xlog1py(x: jax.Array, y: jax.Array) -> jax.Array:
    return jax.scipy.special.xlog1py(x, y)


def kl_inverse(q: jax.Array, c: jax.Array) -> jax.Array:
    """The largest p with kl(q, p) <= c.

    Bisected; where q is tiny, p - q may be as well, so the last steps are Newton's in p - q.

    Args:
        q: empirical means in [0, 1], [...].
        c: bounds of the relative entropy, 0 or more, [...].

    Returns:
        [...], in [q, 1]; 1 - exp(-c) for q = 0, NaN where either is.
    """
    kind = jnp.result_type(q, c, jnp.float32)
    q, c = jnp.broadcast_arrays(jnp.asarray(q, kind), jnp.asarray(c, kind))

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        inside = _kl_above(q, middle - q) <= c
        return jnp.where(inside, middle, low), jnp.where(inside, high, middle)

    low, high = jax.lax.fori_loop(0, STEPS, halve, (q, jnp.ones_like(q)))
    found = jnp.where(q <= 0, -jnp.expm1(-c), (low + high) / 2)
    inverse = jnp.clip(jnp.where(q >= 1, 1.0, jnp.where(c <= 0, q, found)), q, 1.0)
    # No comparison with NaN is true: the bisection would end at q, the best of all bounds.
    return jnp.where(jnp.isnan(c), jnp.nan, inverse)


def _kl_above(q: jax.Array, d: jax.Array) -> jax.Array:
    """kl(q, q + d) for d >= 0: by log1p, since near d = 0 the plain difference is all rounding."""
    inner = jnp.where(q > 0, -q * jnp.log1p(d / jnp.where(q > 0, q, 1)), 0)
    rest = 1 - q
    share = jnp.where(rest > 0, d / jnp.where(rest > 0, rest, 1), 0)
    return inner - jnp.where(rest > 0, rest * jnp.log1p(-jnp.minimum(share, 1)), 0)


def gaussian_kl(
    mean: jax.Array, scale: jax.Array, prior_mean: jax.Array, prior_scale: jax.Array
) -> jax.Array:
    """KL of diagonal Gaussians N(mean, scale^2) from N(prior_mean, prior_scale^2), summed, [].

    sum of (s^2 / s0^2 + (w - w0)^2 / s0^2 - 1 - log(s^2 / s0^2)) / 2.

    Args:
        mean: w, [...].
        scale: s > 0, [...].
        prior_mean: w0, [...].
        prior_scale: s0 > 0, [...] or [].

    Returns:
        [], 0 for equal distributions.
    """
    ratio = (scale / prior_scale) ** 2
    shift = ((mean - prior_mean) / prior_scale) ** 2
    return jnp.sum(ratio - 1 - jnp.log(ratio) + shift) / 2


def _complexity(kl: jax.Array, n: jax.Array, delta: jax.Array | float) -> jax.Array:
    return kl + jnp.log(2 * jnp.sqrt(n) / delta)


def maurer(risk: jax.Array, kl: jax.Array, n: jax.Array, delta: jax.Array | float) -> jax.Array:
    """The bound by the inverse relative entropy.

    Args:
        risk: empirical risk of the randomized predictor, [...].
        kl: KL(Q, P), [...].
        n: examples, 8 or more.
        delta: probability that the bound fails.

    Returns:
        [...].
    """
    n = jnp.asarray(n, jnp.result_type(float))
    return kl_inverse(risk, _complexity(kl, n, delta) / n)


def mcallester(risk: jax.Array, kl: jax.Array, n: jax.Array, delta: jax.Array | float) -> jax.Array:
    """The bound by a square root, never smaller than `maurer`.

    Args:
        risk: empirical risk of the randomized predictor, [...].
        kl: KL(Q, P), [...].
        n: examples.
        delta: probability that the bound fails.

    Returns:
        [...], 1 or more where it says nothing.
    """
    n = jnp.asarray(n, jnp.result_type(float))
    return risk + jnp.sqrt(_complexity(kl, n, delta) / (2 * n))


def monte_carlo(risk: jax.Array, samples: int | jax.Array, delta: float) -> jax.Array:
    """Upper bound of Q's empirical risk from its mean over independent draws.

    Args:
        risk: mean over draws, [...].
        samples: number of draws.
        delta: probability that it fails.

    Returns:
        [...].
    """
    return kl_inverse(risk, jnp.log(2 / delta) / samples)
