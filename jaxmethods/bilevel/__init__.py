"""Bi-level optimisation: an outer variable judged by what an inner optimisation makes of it.

| function | the outer gradient | use it when |
| --- | --- | --- |
| `alternating` | first order: the inner variable is taken as it is | both levels train together |
| `one_step_gradient` | exact through one step of gradient descent | the first order misleads |
| `solve(..., mode=Mixed())` | exact through T optimizer steps | it is the default |
"""

from jaxmethods.bilevel.alternating import Alternating, AlternatingState, Step, alternating
from jaxmethods.bilevel.inner import Solution
from jaxmethods.bilevel.modes import Implicit, Mixed, Mode, Reverse, Truncated
from jaxmethods.bilevel.solve import solve
from jaxmethods.bilevel.unrolled import one_step_gradient

__all__ = [
    "Alternating",
    "AlternatingState",
    "Implicit",
    "Mixed",
    "Mode",
    "Reverse",
    "Solution",
    "Step",
    "Truncated",
    "alternating",
    "one_step_gradient",
    "solve",
]
