"""Gaps between groups in what a binary classifier decides, with bootstrap intervals.

    demographic parity    max - min over groups of P[pred = 1]
    equal opportunity     max - min of P[pred = 1 | label = 1]
    equalized odds        the larger of that gap and the one in P[pred = 1 | label = 0]

(Hardt, Price, Srebro 2016.) A group without the examples that a rate needs has rate NaN, and so has
the gap: 0 would say that groups are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.precision import sums_by_place, wide


class Fairness(NamedTuple):
    """Rates [G] of groups and gaps []."""

    positive_rate: jax.Array
    true_positive_rate: jax.Array
    false_positive_rate: jax.Array
    accuracy: jax.Array
    demographic_parity: jax.Array
    equal_opportunity: jax.Array
    equalized_odds: jax.Array
    worst_accuracy: jax.Array


class Interval(NamedTuple):
    """A percentile bootstrap interval of each field of `Fairness`."""

    low: Fairness
    high: Fairness


@compiled("groups")
def fairness(
    predictions: jax.Array,
    labels: jax.Array,
    group: jax.Array,
    groups: int,
    weight: jax.Array | None = None,
) -> Fairness:
    """Rates and gaps.

    Args:
        predictions: 0 or 1, [N].
        labels: 0 or 1, [N].
        group: 0 to G - 1, [N].
        groups: G.
        weight: [N]; None: ones.

    Returns:
        Rates [G], NaN where a group has no such example, and gaps [], NaN where a rate is. All are
        NaN where an example that counts has another group, prediction or label than these.
    """
    weight = jnp.ones(len(labels)) if weight is None else wide(weight)
    known = (group >= 0) & (group < groups)
    for values in (predictions, labels):
        known &= (values == 0) | (values == 1)
    # Probabilities would be decisions against, and an example of no group in no rate.
    weight = jnp.where(jnp.all(known | (weight == 0)), weight, jnp.nan)
    chosen, true = predictions == 1, labels == 1

    def rate(event: jax.Array, given: jax.Array) -> jax.Array:
        total = sums_by_place(weight * given, group, groups)
        hits = sums_by_place(weight * (given & event), group, groups)
        return jnp.where(total > 0, hits / jnp.where(total > 0, total, 1), jnp.nan)

    everyone = jnp.ones(len(labels), bool)
    positive, right = rate(chosen, everyone), rate(chosen == true, everyone)
    hit, alarm = rate(chosen, true), rate(chosen, ~true)
    gap = lambda rates: jnp.max(rates) - jnp.min(rates)  # noqa: E731
    odds = jnp.maximum(gap(hit), gap(alarm))
    return Fairness(positive, hit, alarm, right, gap(positive), gap(hit), odds, jnp.min(right))


@compiled("groups", "draws", "confidence")
def fairness_interval(
    key: jax.Array,
    predictions: jax.Array,
    labels: jax.Array,
    group: jax.Array,
    groups: int,
    draws: int = 1000,
    confidence: float = 0.95,
) -> Interval:
    """Percentile intervals of every rate and gap, by resampling examples.

    Args:
        key: of the bootstrap.
        predictions: 0 or 1, [N].
        labels: 0 or 1, [N].
        group: 0 to G - 1, [N].
        groups: G.
        draws: resamplings.
        confidence: of the interval.

    Returns:
        Lower and upper ends, shaped as the rates and gaps; of gaps the lower end is biased upwards,
        since a largest difference is never negative.
    """
    count = len(labels)

    def one(key: jax.Array) -> Fairness:
        rows = jax.random.randint(key, (count,), 0, count)
        weight = jnp.zeros(count).at[rows].add(1.0)
        return fairness(predictions, labels, group, groups, weight)

    samples = jax.lax.map(one, jax.random.split(key, draws), batch_size=min(32, draws))
    quantile: Callable[[float], Fairness] = lambda q: jax.tree.map(  # noqa: E731
        lambda values: jnp.nanquantile(values, q, axis=0), samples
    )
    return Interval(quantile((1 - confidence) / 2), quantile((1 + confidence) / 2))
