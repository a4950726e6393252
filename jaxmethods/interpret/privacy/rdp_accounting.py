"""Rényi differential privacy of the Poisson-subsampled Gaussian mechanism.

    A_a = sum_k C(a, k) (1 - q)^(a - k) q^k exp(k (k - 1) / (2 sigma^2)),    rdp = log A_a / (a - 1)
    classic     eps = min_a  T rdp + log(1 / delta) / (a - 1)                     (Mironov 2017)
    improved    eps = min_a  T rdp + log1p(-1 / a) - (log delta + log a) / (a - 1)
                                                               (Canonne, Kamath, Steinke 2020)

for integer orders a >= 2 (Mironov, Talwar, Zhang 2019), T steps, sampling rate q and noise of
standard deviation sigma times the clipping norm. Scalars on the host in float64. It covers batches
in which every example is drawn independently (`privacy.dp_sgd.poisson_batch`), not shuffled batches
of a fixed size.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from scipy.special import gammaln, logsumexp

ORDERS = tuple(range(2, 257))


class Epsilon(NamedTuple):
    """A guarantee of (epsilon, delta) differential privacy."""

    value: float
    order: int
    """That gives the smallest epsilon."""


def subsampled_gaussian_rdp(
    rate: float, noise: float, orders: tuple[int, ...] | np.ndarray = ORDERS
) -> np.ndarray:
    """One step's Rényi divergence.

    Args:
        rate: q in [0, 1].
        noise: sigma > 0, the noise multiplier.
        orders: integers of at least 2, [A].

    Returns:
        [A] float64.

    Raises:
        ValueError: an argument out of range.
    """
    orders = np.asarray(orders)
    if not 0 <= rate <= 1:
        raise ValueError(f"rate: expected a number in [0, 1], got {rate}")
    if not noise > 0:
        raise ValueError(f"noise: expected more than 0, got {noise}")
    if orders.size == 0 or np.any(orders != np.floor(orders)) or np.any(orders < 2):
        raise ValueError(f"orders: expected integers of at least 2, got {orders}")
    if rate == 0:
        return np.zeros(len(orders))
    if rate == 1:
        return orders / (2 * noise**2)
    return np.array([_log_moment(rate, noise, int(a)) / (a - 1) for a in orders])


def _log_moment(rate: float, noise: float, order: int) -> float:
    k = np.arange(order + 1)
    choose = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    terms = choose + k * np.log(rate) + (order - k) * np.log1p(-rate)
    # The terms k = 0 and 1 have no noise in them and all terms without it sum to one: only the
    # excess is added, which keeps small divergences exact.
    excess = terms[2:] + _log_expm1(k[2:] * (k[2:] - 1) / (2 * noise**2))
    return float(np.logaddexp(0.0, logsumexp(excess)))


def _log_expm1(x: np.ndarray) -> np.ndarray:
    """log(exp(x) - 1) for x > 0, without overflow."""
    return x + np.log(-np.expm1(-x))


def epsilon(
    rdp: np.ndarray,
    delta: float,
    orders: tuple[int, ...] | np.ndarray = ORDERS,
    conversion: str = "improved",
) -> Epsilon:
    """The guarantee that follows from Rényi divergences.

    Args:
        rdp: of all steps together, [A].
        delta: in (0, 1).
        orders: [A].
        conversion: "improved" or "classic".

    Returns:
        epsilon and the order it comes from. A warning says when that is the largest order: more of
        them would lower epsilon.

    Raises:
        ValueError: delta out of range or an unknown conversion.
    """
    orders = np.asarray(orders, float)
    if not 0 < delta < 1:
        raise ValueError(f"delta: expected a number in (0, 1), got {delta}")
    if conversion == "classic":
        candidates = rdp + np.log(1 / delta) / (orders - 1)
    elif conversion == "improved":
        candidates = rdp + np.log1p(-1 / orders) - (np.log(delta) + np.log(orders)) / (orders - 1)
    else:
        raise ValueError(f'conversion: expected "improved" or "classic", got {conversion!r}')
    best = int(np.argmin(candidates))
    if best == len(orders) - 1 and len(orders) > 1:
        warnings.warn(
            f"the largest order {orders[-1]:.0f} is the best; add larger ones", stacklevel=2
        )
    return Epsilon(max(float(candidates[best]), 0.0), int(orders[best]))


def training_epsilon(
    rate: float, noise: float, steps: int, delta: float, conversion: str = "improved"
) -> Epsilon:
    """The guarantee of T steps of DP-SGD.

    Args:
        rate: q, the probability with which an example is in a batch.
        noise: sigma, the noise multiplier.
        steps: T.
        delta: in (0, 1).
        conversion: "improved" or "classic".

    Returns:
        epsilon and its order.

    Raises:
        ValueError: an argument out of range.
    """
    if not steps >= 0:
        raise ValueError(f"steps: expected 0 or more, got {steps}")
    return epsilon(steps * subsampled_gaussian_rdp(rate, noise), delta, ORDERS, conversion)


def calibrate_noise(
    target: float, rate: float, steps: int, delta: float, tolerance: float = 1e-9
) -> float:
    """The smallest noise multiplier for an epsilon, by bisection.

    Args:
        target: epsilon > 0.
        rate: q.
        steps: T.
        delta: in (0, 1).
        tolerance: relative width of the bracket at the end.

    Returns:
        sigma, whose epsilon is at most the target.

    Raises:
        ValueError: no noise up to 10^6 reaches the target, or it isn't positive.
    """
    if not target > 0:
        raise ValueError(f"target: expected an epsilon > 0, got {target}")

    def reached(noise: float) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return training_epsilon(rate, noise, steps, delta).value

    low, high = 1e-3, 1.0
    while reached(high) > target:
        low, high = high, 2 * high
        if high > 1e6:
            raise ValueError(f"target: expected an epsilon that noise can reach, got {target}")
    while high - low > tolerance * high:
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) <= target else (middle, high)
    return high
