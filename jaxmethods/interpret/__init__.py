"""Diagnostics with error bars of any JAX model: curvature, kernels, bounds, influence, privacy.

A model is a pure function and its parameters. Each diagnostic is a pure function of it, compiled
once for all parameters of the same shapes, and says how far its number can be trusted. The choice
of measures follows Fu, Chen, Wang, Tao, "A Theoretical Survey on Foundation Models", arXiv
2410.11444: what learning theory speaks of and can be measured of a given model, not formulas of its
size.

    from jaxmethods import interpret
    from jaxmethods.interpret.curvature import hutchinson, operators, slq
    problem = interpret.make_problem(
        model.apply, interpret.cross_entropy, params, (images, labels)
    )
    trace = hutchinson.trace(operators.hessian(problem), key)
    print(trace.value, "+-", trace.error)
    print(interpret.report.to_markdown(interpret.report.report(problem, held_out, key)))

`curvature`, `gradients` and `kernels` are the core; `generalization`, `expressivity`,
`representation` and `dynamics` are the survey's sections 3 to 5, `influence`, `privacy` and
`honesty` its section 6. docs/methods/interpret.md has for every measure its definition, cost,
error, source, and what it does not prove.
"""

from jaxmethods.interpret import (
    curvature,
    dynamics,
    expressivity,
    generalization,
    gradients,
    honesty,
    influence,
    kernels,
    losses,
    measures,
    privacy,
    report,
    representation,
    streams,
    trees,
)
from jaxmethods.interpret.losses import Loss as Loss
from jaxmethods.interpret.losses import cross_entropy as cross_entropy
from jaxmethods.interpret.losses import squared_error as squared_error
from jaxmethods.interpret.problem import Data as Data
from jaxmethods.interpret.problem import Estimate as Estimate
from jaxmethods.interpret.problem import Problem as Problem
from jaxmethods.interpret.problem import (
    check_independent,
    make_problem,
    mean_gradient,
    mean_loss,
)

__all__ = [
    "check_independent",
    "curvature",
    "dynamics",
    "expressivity",
    "generalization",
    "gradients",
    "honesty",
    "influence",
    "kernels",
    "losses",
    "make_problem",
    "mean_gradient",
    "mean_loss",
    "measures",
    "privacy",
    "report",
    "representation",
    "streams",
    "trees",
]
