"""Bounds of the risk and what correlates with it.

certificate = pac_bayes.certificate(posterior, problem, prior, key)
deleted = leave_one_out.ridge_leave_one_out(inputs, targets, penalty)
"""

from jaxmethods.interpret.generalization import (
    distribution_shift,
    evaluated_cmi,
    kl_bounds,
    leave_one_out,
    norms,
    pac_bayes,
    rademacher,
    stability,
)

__all__ = [
    "distribution_shift",
    "evaluated_cmi",
    "kl_bounds",
    "leave_one_out",
    "norms",
    "pac_bayes",
    "rademacher",
    "stability",
]
