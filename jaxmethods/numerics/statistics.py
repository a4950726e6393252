"""How sure a mean is, whether two differ, and tables of means."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np


class Summary(NamedTuple):
    """A quantity over independent repetitions: seeds, or policies.

    `f"{summary:.1f}"` is "12.3 ± 0.4", or "12.3" for a single value. Without a format the error has
    two digits and the mean ends where they do: "12.31 ± 0.42".
    """

    mean: float
    error: float | None
    """Standard error: the sample standard deviation over the square root of the number of
    repetitions; None for one."""

    def __format__(self, spec: str) -> str:
        if not spec and self.error and math.isfinite(self.error):
            place = 1 - math.floor(math.log10(float(f"{self.error:.1e}")))
            if abs(self.mean) < 1e6 and place <= 8:
                spec = f".{max(place, 0)}f"
        mean = format(self.mean, spec or ".4g")
        return mean if self.error is None else f"{mean} ± {format(self.error, spec or '.2g')}"

    def __str__(self) -> str:
        return format(self, "")


def summarize(values: Any) -> Summary:
    """The mean of [n] values and its standard error; of [n, ...], means over the rest come first.

    Raises:
        ValueError: there is no value.
    """
    values = np.asarray(values, float)
    if not values.size:
        raise ValueError("values: expected at least one, got none")
    return Summary(*mean_and_error(values.reshape(len(values), -1).mean(1)))


def mean_and_error(values: np.ndarray) -> tuple[float, float | None]:
    """The mean of [n] values and its standard error, which is None for one value."""
    if len(values) == 1:
        return float(values.mean()), None
    return float(values.mean()), float(standard_error(values))


def standard_error(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Sample standard deviation over the square root of the number of values along an axis.

    It is 0 where there is one value: nothing is known of its spread.
    """
    count = values.shape[axis]
    spread = values.std(axis, ddof=1) if count > 1 else np.zeros_like(values.sum(axis))
    return spread / np.sqrt(count)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, a line for each row, without a newline at its end.

    Texts of others may hold what ends a cell or a row: a bar becomes a slash, a line break a space.
    """
    plain = [[cell.replace("|", "/").replace("\n", " ") for cell in line] for line in (head, *rows)]
    lines = [plain[0], ["---"] * len(head), *plain[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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


class Interval(NamedTuple):
    """A mean, and the interval that holds it."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


def percentile_interval(mean: float, draws: np.ndarray, level: float = 0.95) -> Interval:
    """The interval that holds the middle share `level` of drawn means [R]."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(mean), float(low), float(high))


def student_interval(values: np.ndarray, level: float = 0.95) -> Interval:
    """The mean of a few independent values [n], with Student's interval; one value has no width."""
    from scipy.special import stdtrit  # a quarter of a second to import

    mean, error = mean_and_error(np.asarray(values, float))
    half = 0.0 if error is None else error * float(stdtrit(len(values) - 1, (1 + level) / 2))
    return Interval(mean, mean - half, mean + half)


def bootstrap_interval(
    values: np.ndarray, seed: int = 0, draws: int = 2000, level: float = 0.95
) -> Interval:
    """The percentile bootstrap of a mean: items are drawn again with replacement.

    Args:
        values: [n, ...]; items lie on the first axis, means over the rest come first. NaN is no
            value.
        seed: of NumPy's generator.
        draws: how many means are drawn.
        level: how much of them the interval holds.

    Returns:
        The mean and the interval; NaN where there is no value.
    """
    values = np.asarray(values, float)
    values = values.reshape(len(values), math.prod(values.shape[1:]))
    there = np.isfinite(values)
    sums, counts = np.where(there, values, 0).sum(1), there.sum(1)
    if not counts.sum():
        return Interval(math.nan, math.nan, math.nan)
    rows = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    drawn = counts[rows].sum(1)
    means = sums[rows].sum(1)[drawn > 0] / drawn[drawn > 0]
    return percentile_interval(sums.sum() / counts.sum(), means, level)


def half_sample_interval(
    statistic: Callable[[np.ndarray], float],
    items: int,
    seed: int = 0,
    draws: int = 200,
    level: float = 0.95,
) -> Interval:
    """The interval of a statistic that repeated items would spoil, such as an unbiased similarity.

    Random halves without replacement vary as much as whole samples do: the variance of a mean of
    n/2 of n items is (2/n - 1/n) s^2 = s^2/n. (A delete-d jackknife with d = n/2; Shao and Wu,
    1989.)

    Args:
        statistic: item numbers [m] -> value.
        items: n, at least 2.
        seed: of NumPy's generator.
        draws: how many halves are drawn.
        level: how much of their spread the interval holds.

    Returns:
        The value of all items, and the interval of the halves' spread around it.

    Raises:
        ValueError: fewer than two items.
    """
    if items < 2:
        raise ValueError(f"items: expected at least 2, got {items}")
    rng = np.random.default_rng(seed)
    halves = [np.sort(rng.permutation(items)[: items // 2]) for _ in range(draws)]
    values = np.asarray([statistic(half) for half in halves])
    mean = float(statistic(np.arange(items)))
    return percentile_interval(mean, values - np.mean(values) + mean, level)
