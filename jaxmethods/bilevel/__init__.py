"""Bi-level optimisation: an outer variable judged by what an inner optimisation makes of it.

| function | the outer gradient | use it when |
| --- | --- | --- |
| `alternating` | first order: the inner variable is taken as it is | both levels train together |
"""

from jaxmethods.bilevel.alternating import Alternating, AlternatingState, Step, alternating

__all__ = ["Alternating", "AlternatingState", "Step", "alternating"]
