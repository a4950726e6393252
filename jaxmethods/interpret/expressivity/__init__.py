"""What a network can do: linear pieces along a segment, learning within a prompt.

regions = linear_regions.linear_regions(layers, start, end)
predictions = in_context.in_context_descent(inputs, targets, query, rate, layers=3)
"""

from jaxmethods.interpret.expressivity import (
    in_context,
    linear_regions,
)

__all__ = [
    "in_context",
    "linear_regions",
]
