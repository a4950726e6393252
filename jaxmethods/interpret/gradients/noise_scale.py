"""The gradient noise scale: the batch size beyond which larger batches stop paying.

    B_simple = tr(Sigma) / |g|^2,    Sigma = covariance of per-example gradients, g = their mean

(McCandlish et al., "An empirical model of large-batch training", 2018). With a mean over N examples
|g|^2 is too large by tr(Sigma) / N in expectation, which the unbiased form takes off. From norms of
gradients of two batch sizes it follows without per-example gradients.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.interpret import trees
from jaxmethods.interpret.curvature.operators import Operator
from jaxmethods.interpret.gradients.per_example import map_gradients, squared_norms
from jaxmethods.interpret.problem import Estimate, Problem, mean_gradient, one_batch
from jaxmethods.numerics.compiled import compiled


class NoiseScale(NamedTuple):
    """All []."""

    trace_sigma: jax.Array
    """Trace of the covariance, divided by N - ddof."""
    squared_norm: jax.Array
    """|g|^2 of the mean gradient, as it is."""
    biased: jax.Array
    """tr(Sigma) / |g|^2."""
    unbiased: jax.Array
    """tr(Sigma) / (|g|^2 - tr(Sigma) / N); NaN where the denominator is not positive: the gradient
    is lost in its noise."""


@compiled("ddof", "chunk")
def noise_scale(problem: Problem, ddof: int = 1, chunk: int = 64) -> NoiseScale:
    """From norms of all per-example gradients; none of them is kept.

    Args:
        problem: N examples; those of weight 0 don't count.
        ddof: 1 for the unbiased covariance, 0 for the biased one.
        chunk: examples whose gradients are in memory together.

    Returns:
        The scale and what it is made of.
    """
    gradient = mean_gradient(problem)
    squares = squared_norms(problem, chunk)
    weight = problem.weights(one_batch(problem).data, squares.dtype)
    count = jnp.sum(weight)
    norm = trees.vdot(gradient, gradient)
    # sum_i |g_i - g|^2 = sum_i |g_i|^2 - N |g|^2
    deviations = jnp.maximum(jnp.sum(weight * squares) - count * norm, 0)
    sigma = deviations / (count - ddof)
    return NoiseScale(sigma, norm, sigma / norm, _ratio(sigma, norm - sigma / count))


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    positive = denominator > 0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1), jnp.nan)


def from_two_batches(
    small_norm: jax.Array, big_norm: jax.Array, small: int, big: int
) -> tuple[jax.Array, jax.Array]:
    """Unbiased tr(Sigma) and |g|^2 from squared gradient norms of two batch sizes.

    Average both over steps, apart, before their ratio is taken.

    Args:
        small_norm: |gradient|^2 of a batch of `small` examples, or its mean over several, [].
        big_norm: of a batch of `big` examples, [].
        small: number of examples.
        big: number of examples, larger.

    Returns:
        tr(Sigma) and |g|^2, []; their ratio is the noise scale.

    Raises:
        ValueError: `big` is not larger than `small`.
    """
    if not 0 < small < big:
        raise ValueError(f"big: expected more than small ({small}), got {big}")
    sigma = (small_norm - big_norm) / (1 / small - 1 / big)
    return sigma, (big * big_norm - small * small_norm) / (big - small)


@compiled("chunk")
def curvature_noise_scale(problem: Problem, operator: Operator, chunk: int = 64) -> Estimate:
    """B_noise = tr(H Sigma) / (g^T H g), which weighs noise by curvature.

    Args:
        problem: N examples.
        operator: H, of the same parameters.
        chunk: examples whose gradients are in memory together.

    Returns:
        The scale [] on the examples given, without sampling error.
    """
    gradient = mean_gradient(problem)
    product = operator.product()
    forms = map_gradients(problem, lambda own: trees.vdot(own, product(own)), chunk)
    weight = problem.weights(one_batch(problem).data, forms.dtype)
    along = trees.vdot(gradient, product(gradient))
    total = jnp.sum(weight * forms) / jnp.sum(weight) - along
    return Estimate(total / along, jnp.zeros_like(total), jnp.asarray(1))
