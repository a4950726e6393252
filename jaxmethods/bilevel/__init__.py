"""Bi-level optimisation: an outer variable judged by what an inner optimisation makes of it.

| function | the outer gradient | use it when |
| --- | --- | --- |
| `alternating` | first order: the inner variable is taken as it is | both levels train together |
| `one_step_gradient` | exact through one step of gradient descent | the first order misleads |
"""

from jaxmethods.bilevel.alternating import Alternating, AlternatingState, Step, alternating
from jaxmethods.bilevel.unrolled import one_step_gradient

__all__ = ["Alternating", "AlternatingState", "Step", "alternating", "one_step_gradient"]
