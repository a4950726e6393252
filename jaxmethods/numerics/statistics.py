"""How sure a mean is."""

from __future__ import annotations

import numpy as np


def mean_and_error(values: np.ndarray) -> tuple[float, float | None]:
    """The mean of [n] values and its standard error.

    The error is the sample standard deviation over the square root of n; None for one value.
    """
    if len(values) == 1:
        return float(values.mean()), None
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)
