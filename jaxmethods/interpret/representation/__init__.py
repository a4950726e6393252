"""Features, attention and values inside a model.

numbers = geometry.geometry(features)
collapse = neural_collapse.neural_collapse(features, labels, classes, weights, bias)
hidden = capture.capture(apply, ["hidden"])(params, images)
"""

from jaxmethods.interpret.representation import (
    attention,
    capture,
    geometry,
    intrinsic_dimension,
    neural_collapse,
)
from jaxmethods.numerics import cka

__all__ = [
    "attention",
    "capture",
    "cka",
    "geometry",
    "intrinsic_dimension",
    "neural_collapse",
]
