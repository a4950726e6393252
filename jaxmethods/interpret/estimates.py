"""Means with standard errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmethods.interpret.problem import Estimate
from jaxmethods.numerics.precision import power_of_two


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
    # Squares of deviations may be too small, or too large, for the samples' type.
    unit = power_of_two(jnp.max(jnp.abs(samples), axis=0))
    error = unit * jnp.std(samples / unit, axis=0, ddof=1) / count**0.5
    return Estimate(mean, error, jnp.asarray(count))


def exact(value: jax.Array) -> Estimate:
    """What has no sampling error."""
    value = jnp.asarray(value)
    return Estimate(value, jnp.zeros_like(value), jnp.asarray(1))
