"""Fairness between groups, calibration, made-up facts, over-optimized rewards.

gaps = fairness.fairness(predictions, labels, group, groups=2)
numbers = calibration.calibration(logits, labels)
"""

from jaxmethods.interpret.honesty import (
    best_of_n,
    calibration,
    fairness,
    good_turing,
)

__all__ = [
    "best_of_n",
    "calibration",
    "fairness",
    "good_turing",
]
