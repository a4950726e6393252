"""Gradients of single examples: their norms, their noise, their agreement.

scale = noise_scale.noise_scale(problem)
norms = per_example.squared_norms(problem)
"""

from jaxmethods.interpret.gradients import (
    linear_layers,
    noise_scale,
    per_example,
)

__all__ = [
    "linear_layers",
    "noise_scale",
    "per_example",
]
