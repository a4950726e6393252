"""What training examples do to predictions: influence functions, TracIn, TRAK, memorization.

found = influence_functions.influence(problem, queries, damping=1e-2)
scores = trak.scores(trak.project(problem, key), trak.project(queries, key))
"""

from jaxmethods.interpret.influence import (
    influence_functions,
    memorization,
    tracin,
    trak,
)

__all__ = [
    "influence_functions",
    "memorization",
    "tracin",
    "trak",
]
