"""How sure a mean is, and whether two differ."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np


def mean_and_error(values: np.ndarray) -> tuple[float, float | None]:
    """The mean of [n] values and its standard error.

    The error is the sample standard deviation over the square root of n; None for one value.
    """
    if len(values) == 1:
        return float(values.mean()), None
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


class McNemar(NamedTuple):
    """Two systems on the same questions."""

    only_first: int
    """Questions that only the first answers."""
    only_second: int
    p: float
    """Two-sided: how likely a difference of at least this size is between equals."""


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """The exact McNemar test of paired verdicts [n] bool: a fair coin for each that differs.

    Raises:
        ValueError: verdicts of different questions.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    if first.shape != second.shape:
        raise ValueError(f"second: expected {first.shape} verdicts, got {second.shape}")
    one, other = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    number, few = one + other, min(one, other)
    # In whole numbers: 2^-n underflows.
    tail = sum(math.comb(number, k) for k in range(few + 1))
    return McNemar(one, other, min(1.0, float(Fraction(2 * tail, 2**number))))
