"""The empirical neural tangent kernel, its statistics, and the linearized model.

kernel = ntk.ntk(model.apply, params, images)
numbers = kernel_statistics.kernel_statistics(kernel)
"""

from jaxmethods.interpret.kernels import (
    kernel_statistics,
    linearized,
    ntk,
)

__all__ = [
    "kernel_statistics",
    "linearized",
    "ntk",
]
