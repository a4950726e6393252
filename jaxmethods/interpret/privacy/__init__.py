"""What a model gives away of its data, and training that does not.

scores = lira.lira_of_subsets(confidences, subsets, observed)
guarantee = rdp_accounting.training_epsilon(rate, noise, steps, delta)
"""

from jaxmethods.interpret.privacy import (
    audit,
    dp_sgd,
    lira,
    membership,
    rdp_accounting,
)

__all__ = [
    "audit",
    "dp_sgd",
    "lira",
    "membership",
    "rdp_accounting",
]
