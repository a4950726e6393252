"""Power laws of a loss in size or data, with bootstrap intervals.

    L(N) = E + A N^-alpha

(Hestness et al. 2017; Kaplan et al. 2020; Hoffmann et al. 2022.) For a fixed alpha E and A are a
linear regression, so only alpha is searched (variable projection). An exponent read from few points
over less than a decade has a wide interval: that is what the bootstrap is for.

What looks like a sudden gain may be the metric (Schaeffer et al. 2023): a token that is right with
probability p = exp(-L) makes a text of k tokens right with probability p^k.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.precision import power_of_two, wide


class ScalingLaw(NamedTuple):
    """E, A and alpha, [] or [draws]."""

    floor: jax.Array
    factor: jax.Array
    exponent: jax.Array


class ScalingFit(NamedTuple):
    """The best law and percentile intervals."""

    law: ScalingLaw
    low: ScalingLaw
    high: ScalingLaw


def fit_scaling_law(
    sizes: jax.Array | np.ndarray,
    losses: jax.Array | np.ndarray,
    key: jax.Array,
    draws: int = 500,
    confidence: float = 0.95,
    points: int = 200,
) -> ScalingFit:
    """Least squares in relative errors.

    Args:
        sizes: N > 0, [n], at least four.
        losses: L > 0, [n].
        key: of the bootstrap over residuals.
        draws: resamplings.
        confidence: of the intervals.
        points: exponents that are tried, between 0.01 and 2, before the best is refined.

    Returns:
        The law and the ends of its intervals.

    Raises:
        ValueError: fewer than four points.
    """
    if len(sizes) < 4:
        raise ValueError(f"sizes: expected at least 4, got {len(sizes)}")
    # Numbers of parameters don't fit into 32 bits, to which integers of a host would be cut.
    numbers = sizes if isinstance(sizes, jax.Array) else jnp.asarray(np.asarray(sizes, float))
    return _fit_all(numbers, jnp.asarray(losses), key, draws, confidence, points)


@compiled("draws", "confidence", "points")
def _fit_all(
    sizes: jax.Array,
    losses: jax.Array,
    key: jax.Array,
    draws: int,
    confidence: float,
    points: int,
) -> ScalingFit:
    logs = jnp.log(sizes / jnp.exp(jnp.mean(jnp.log(sizes))))  # an offset keeps A near L
    losses = wide(losses)
    unit = power_of_two(jnp.max(jnp.abs(losses)))  # sums of 1 / L^4 would leave float32
    losses = losses / unit
    law = _fit(logs, losses, points)
    fitted = law.floor + law.factor * jnp.exp(-law.exponent * logs)
    residuals = losses / fitted - 1
    # Three parameters take their share of the residuals.
    residuals = residuals * (len(sizes) / (len(sizes) - 3)) ** 0.5

    def resample(key: jax.Array) -> ScalingLaw:
        drawn = jax.random.choice(key, residuals, losses.shape)
        return _fit(logs, fitted * (1 + drawn), points)

    samples = jax.vmap(resample)(jax.random.split(key, draws))
    offset = jnp.mean(jnp.log(sizes))

    def natural(law: ScalingLaw) -> ScalingLaw:
        factor = law.factor * jnp.exp(law.exponent * offset)
        return ScalingLaw(unit * law.floor, unit * factor, law.exponent)

    samples = natural(samples)
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = (jax.tree.map(lambda x, q=q: jnp.quantile(x, q), samples) for q in ends)
    return ScalingFit(natural(law), low, high)


def _fit(logs: jax.Array, losses: jax.Array, points: int) -> ScalingLaw:
    def at(exponent: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        power = jnp.exp(-exponent * logs)
        a, b = 1 / losses, power / losses  # weights of relative errors: targets are all one
        aa, ab, bb = a @ a, a @ b, b @ b
        determinant = jnp.maximum(aa * bb - ab**2, 1e-30)
        floor = (bb * jnp.sum(a) - ab * jnp.sum(b)) / determinant
        floor = jnp.maximum(floor, 0)
        factor = jnp.sum(b * (1 - floor * a)) / bb
        return jnp.sum((floor * a + factor * b - 1) ** 2), floor, factor

    grid = jnp.exp(jnp.linspace(jnp.log(0.01), jnp.log(2.0), points))
    step = jnp.log(2.0 / 0.01) / (points - 1)

    def refine(_: int, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        center, width = carry
        near = center * jnp.exp(width * jnp.linspace(-1, 1, 9))
        return near[jnp.argmin(jax.vmap(at)(near)[0])], width / 3

    best = grid[jnp.argmin(jax.vmap(at)(grid)[0])]
    best, _ = jax.lax.fori_loop(0, 8, refine, (best, step))
    _, floor, factor = at(best)
    return ScalingLaw(floor, factor, best)


def exact_match(loss: jax.Array, length: int) -> jax.Array:
    """Probability that a text of k tokens is right when each has this mean loss, exp(-k L)."""
    return jnp.exp(-length * loss)
