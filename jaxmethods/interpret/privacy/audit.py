"""A lower bound of epsilon from running a mechanism with and without a canary.

For every rejection region of an (eps, delta) private mechanism

    1 - FNR <= exp(eps) FPR + delta,    1 - FPR <= exp(eps) FNR + delta,

so upper confidence limits of FPR and FNR give a lower limit of eps (Jagielski, Ullman, Oprea 2020;
Nasr et al. 2021). The threshold is chosen on one half of the runs and judged on the other. An audit
can only find a flaw: a small bound proves nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Audit(NamedTuple):
    """What the runs show."""

    epsilon: float
    """Lower bound that holds with the confidence asked for; 0 where nothing was found."""
    false_positives: float
    """Upper confidence limit of their rate."""
    false_negatives: float


def audit(
    without: np.ndarray, with_canary: np.ndarray, delta: float, confidence: float = 0.95
) -> Audit:
    """The bound from a statistic of runs, larger with the canary.

    Args:
        without: statistics of runs without the canary, [R].
        with_canary: of runs with it, [R].
        delta: of the mechanism.
        confidence: probability that the bound holds.

    Returns:
        The lower bound and the rates it comes from.

    Raises:
        ValueError: fewer than four runs of either kind, or values that are not finite.
    """
    without, with_canary = np.asarray(without, float), np.asarray(with_canary, float)
    for name, values in (("without", without), ("with_canary", with_canary)):
        if len(values) < 4 or not np.all(np.isfinite(values)):
            raise ValueError(f"{name}: expected at least 4 finite values, got {len(values)}")
    # Interleaved halves, so that a drift of the runs is in both.
    choose = _best_threshold(without[::2], with_canary[::2], delta, confidence)
    return _judge(without[1::2], with_canary[1::2], choose, delta, confidence)


def _judge(
    without: np.ndarray, with_canary: np.ndarray, threshold: float, delta: float, confidence: float
) -> Audit:
    positives = upper_limit(int(np.sum(without >= threshold)), len(without), confidence)
    negatives = upper_limit(int(np.sum(with_canary < threshold)), len(with_canary), confidence)
    bounds = [
        np.log(max(1 - delta - missed, 1e-300)) - np.log(false)
        for missed, false in ((negatives, positives), (positives, negatives))
    ]
    return Audit(float(max(*bounds, 0.0)), float(positives), float(negatives))


def _best_threshold(
    without: np.ndarray, with_canary: np.ndarray, delta: float, confidence: float
) -> float:
    candidates = np.unique(np.concatenate([without, with_canary]))
    middles = (candidates[1:] + candidates[:-1]) / 2 if len(candidates) > 1 else candidates
    middles = middles[:: max(1, len(middles) // 200)]
    found = [_judge(without, with_canary, t, delta, confidence).epsilon for t in middles]
    return float(middles[int(np.argmax(found))])


def upper_limit(errors: int, trials: int, confidence: float) -> float:
    """Clopper and Pearson's limit of a rate; two of them hold together with `confidence`."""
    if errors >= trials:
        return 1.0
    from scipy.stats import beta  # a second to import

    return float(beta.ppf((1 + confidence) / 2, errors + 1, trials - errors))


def exposure(losses: np.ndarray, canary: float) -> float:
    """log2 N - log2 rank of a canary among N other candidates' losses (Carlini et al. 2019).

    It is log2(N + 1) where the canary's loss is smaller than all, about 1 in the mean by chance.

    Args:
        losses: of the other candidates, [N].
        canary: its own.

    Returns:
        Bits.

    Raises:
        ValueError: no candidates, or a loss that is NaN, which nothing is smaller than.
    """
    losses = np.asarray(losses, float)
    if not losses.size:
        raise ValueError("losses: expected at least one candidate, got none")
    for name, values in (("losses", losses), ("canary", canary)):
        if np.isnan(values).any():
            raise ValueError(f"{name}: expected numbers, got NaN")
    rank = 1 + int(np.sum(losses < canary)) + 0.5 * int(np.sum(losses == canary))
    return float(np.log2(len(losses) + 1) - np.log2(rank))
