"""Means with standard errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmethods.interpret.problem import Estimate


def mean_of(samples: jax.Array) -> Estimate:
    """The mean of independent samples [n, ...] and its standard error, which is NaN for n = 1.

    Args:
        samples: along the first axis.

    Returns:
        value and error [...].
    """
    count = samples.shape[0]
    mean = jnp.mean(samples, axis=0)
    if count == 1:
        return Estimate(mean, jnp.full_like(mean, jnp.nan), jnp.asarray(count))
    return Estimate(mean, jnp.std(samples, axis=0, ddof=1) / count**0.5, jnp.asarray(count))


def exact(value: jax.Array) -> Estimate:
    """What has no sampling error."""
    value = jnp.asarray(value)
    return Estimate(value, jnp.zeros_like(value), jnp.asarray(1))
