"""Facts that were seen once, and the hallucinations that a calibrated model must make.

    monofact (Good-Turing) estimate    m = n_1 / n

of the probability that the next fact is a new one, with n_1 facts seen exactly once in n (Good
1953). A model whose probabilities of facts are calibrated up to `miscalibration` then makes up
facts at a rate of at least about

    m - miscalibration - 7 / sqrt(n)

with high probability, up to a term that vanishes when false facts far outnumber the true ones
(Kalai, Vempala, "Calibrated language models must hallucinate", 2024). It concerns arbitrary facts
that no rule gives away, such as birthdays, and says nothing of models that decline to answer.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.interpret.problem import Estimate
from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.precision import sums_by_place, wide


@compiled()
def good_turing(counts: jax.Array) -> Estimate:
    """n_1 / n and its standard error (Esty 1983).

    Args:
        counts: how often each fact occurs, [F].

    Returns:
        The probability of facts that were not seen, []; NaN without any.
    """
    total = jnp.sum(counts, dtype=jnp.float32)  # not in a type that 65504 or 2^31 ends
    once, twice = jnp.sum(counts == 1) / total, jnp.sum(counts == 2) / total
    variance = once * (1 - once) + 2 * twice
    return Estimate(once, jnp.sqrt(jnp.maximum(variance, 0) / total), total)


class Hallucination(NamedTuple):
    """A corpus of facts and a model of it; all []."""

    lower_bound: jax.Array
    """On the rate of made-up facts."""
    monofacts: Estimate
    miscalibration: jax.Array
    """Total variation of the binned probabilities from frequencies."""
    rate: jax.Array
    """The model's own probability of facts that are not true."""


@compiled("bins")
def hallucination(
    counts: jax.Array, model: jax.Array, truth: jax.Array, bins: int = 20
) -> Hallucination:
    """The bound beside the measured rate, over all facts that could be stated.

    Args:
        counts: occurrences of each possible fact in the training corpus, [F].
        model: the model's probability of stating each, [F], of sum one.
        truth: the world's probability of each, 0 for false ones, [F].
        bins: of facts with nearly equal model probabilities, as in the theorem's definition.

    Returns:
        Bound, its parts and the rate.
    """
    monofacts = good_turing(counts)
    model, truth = wide(model), wide(truth)
    logs = jnp.log(jnp.maximum(model, 1e-30))
    spread = jnp.maximum(jnp.max(logs) - jnp.min(logs), 1e-6)
    place = jnp.minimum(((logs - jnp.min(logs)) / spread * bins).astype(int), bins - 1)
    mass = lambda p: sums_by_place(p, place, bins)  # noqa: E731
    apart = jnp.sum(jnp.abs(mass(model) - mass(truth))) / 2
    rest = 7 / jnp.sqrt(monofacts.samples)
    return Hallucination(
        jnp.maximum(monofacts.value - apart - rest, 0),
        monofacts,
        apart,
        jnp.sum(jnp.where(truth > 0, 0, model)),
    )


def semantic_entropy(meanings: jax.Array) -> jax.Array:
    """Entropy of the meanings of sampled answers (Farquhar et al. 2024).

    Args:
        meanings: a number for the meaning of each of S answers to Q questions, int [Q, S].

    Returns:
        [Q], nats: 0 where all answers mean the same.
    """
    same = meanings[:, :, None] == meanings[:, None, :]  # [Q, S, S]
    # Every answer's share of its meaning: the mean of -log share is the entropy.
    return -jnp.mean(jnp.log(jnp.mean(same, axis=2)), axis=1)
