"""How far two samples of features are apart, and a risk carried from one to the other.

    proxy A-distance     2 (1 - 2 err), err of a classifier between the samples  (Ben-David 2007)
    importance weights   w(x) = (n_s / n_t) p(target | x) / p(source | x)       (Shimodaira 2000)
    effective size       (sum w)^2 / sum w^2                                     (Kong 1992)

The classifier is a ridge-penalized logistic regression, fitted on halves and judged on the others.
Weights that rest on few examples say so by their effective size.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.interpret.problem import Estimate
from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.precision import spread_or_one, wide


class Shift(NamedTuple):
    """Two samples of features."""

    distance: Estimate
    """Proxy A-distance: 0 for equal distributions, 2 for ones that never overlap."""
    weights: jax.Array
    """[n], of source examples, with mean 1."""
    effective_size: jax.Array
    """[]."""


def logistic_regression(
    inputs: jax.Array, labels: jax.Array, weights: jax.Array, penalty: float, steps: int = 12
) -> jax.Array:
    """Coefficients [D + 1] (the last is the offset) by Newton's method.

    Args:
        inputs: [N, D].
        labels: 0 or 1, [N].
        weights: [N].
        penalty: of the squared coefficients, over the sum of weights.
        steps: Newton steps.

    Returns:
        [D + 1].
    """
    design = jnp.concatenate([inputs, jnp.ones((len(inputs), 1), inputs.dtype)], axis=1)
    free = jnp.append(jnp.ones(inputs.shape[1], inputs.dtype), 1e-6)
    ridge = penalty * jnp.diag(free.astype(inputs.dtype))
    total = jnp.sum(weights)

    def step(_: int, w: jax.Array) -> jax.Array:
        p = jax.nn.sigmoid(design @ w)
        slope = design.T @ (weights * (p - labels)) / total + ridge @ w
        curvature = (design * (weights * p * (1 - p))[:, None]).T @ design / total + ridge
        return w - jnp.linalg.solve(curvature, slope)

    return jax.lax.fori_loop(0, steps, step, jnp.zeros(design.shape[1], inputs.dtype))


@compiled()
def distribution_shift(
    source: jax.Array, target: jax.Array, key: jax.Array, penalty: float = 1e-2
) -> Shift:
    """Distance and importance weights.

    Args:
        source: features [n, D].
        target: features [m, D].
        key: of the halves.
        penalty: of the classifier.

    Returns:
        The distance with its binomial error, weights [n] of the source examples (each by the
        classifier that was not fitted on it) and their effective size.
    """
    inputs = wide(jnp.concatenate([source, target]))
    mean = jnp.mean(inputs, axis=0)
    inputs = (inputs - mean) / spread_or_one(jnp.std(inputs, axis=0), mean)
    count, other = len(source), len(target)
    labels = jnp.append(jnp.zeros(count, inputs.dtype), jnp.ones(other, inputs.dtype))
    # Both samples weigh the same, whatever their sizes, so that chance is an error of one half.
    balance = jnp.where(labels == 1, 0.5 / other, 0.5 / count).astype(inputs.dtype)
    order = jax.random.uniform(key, labels.shape)
    half = order < jnp.median(order)

    def logits(fitted: jax.Array) -> jax.Array:
        w = logistic_regression(inputs, labels, balance * fitted, penalty)
        return inputs @ w[:-1] + w[-1]

    crossed = jnp.where(half, logits(~half), logits(half))
    wrong = (crossed > 0) != (labels == 1)
    error = jnp.sum(balance * wrong)
    variance = jnp.sum((balance * (wrong - error)) ** 2)
    distance = Estimate(2 * (1 - 2 * error), 4 * jnp.sqrt(variance), jnp.asarray(len(labels)))
    ratio = jnp.exp(crossed[:count] - jnp.max(crossed[:count]))
    weights = ratio / jnp.mean(ratio)
    return Shift(distance, weights, jnp.sum(weights) ** 2 / jnp.sum(weights**2))


def weighted_risk(losses: jax.Array, weights: jax.Array) -> Estimate:
    """Self-normalized importance-weighted mean of losses [n], with its delta-method error."""
    losses, weights = wide(losses), wide(weights)
    share = weights / jnp.sum(weights)
    risk = jnp.sum(share * losses)
    return Estimate(
        risk,
        jnp.sqrt(jnp.sum((share * (losses - risk)) ** 2)),
        jnp.sum(weights) ** 2 / jnp.sum(weights**2),
    )
