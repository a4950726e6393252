"""Hessian, GGN and Fisher as operators on pytrees: extreme eigenpairs, spectral densities, traces.

operator = operators.hessian(problem)            # or ggn, fisher, empirical_fisher, block
pairs = eigenpairs.eigenpairs(operator, key, k=5)
spectrum = slq.spectrum(operator, key)
trace = hutchinson.trace(operator, key)          # value, error, samples
trace = layer_trace.exact_trace(problem)         # of dense layers, in a few tangents
"""

from jaxmethods.interpret.curvature import (
    eigenpairs,
    hutchinson,
    lanczos,
    layer_trace,
    marchenko_pastur,
    operators,
    slq,
)

__all__ = [
    "eigenpairs",
    "hutchinson",
    "lanczos",
    "layer_trace",
    "marchenko_pastur",
    "operators",
    "slq",
]
