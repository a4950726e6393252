"""A function's Jacobian at a point, as products with it and with its transpose.

`jax.linearize` refuses functions that have their own reverse rule alone (`jax.custom_vjp`), such as
hand-written attention. Their cotangent map is linear, too, and its transpose is the tangent map:
J u = (v -> J^T v)^T u.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxmethods.interpret.trees import Vector


class Jacobian(NamedTuple):
    """A function at a point."""

    value: Any
    product: Callable[[Vector], Any]
    """J u, as the value."""
    transposed: Callable[[Any], Vector]
    """J^T v, as the point."""


def jacobian(function: Callable[[Vector], Any], vector: Vector) -> Jacobian:
    """Linearizes a function once for many products.

    Args:
        function: of a vector.
        vector: where.

    Returns:
        Its value, and both products; each computes a pass of its kind only.
    """
    try:
        value, product = jax.linearize(function, vector)
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        value, pull = jax.vjp(function, vector)
        transpose = jax.linear_transpose(lambda cotangent: pull(cotangent)[0], value)
        return Jacobian(value, lambda tangent: transpose(tangent)[0], lambda v: pull(v)[0])
    transpose = jax.linear_transpose(product, vector)
    return Jacobian(value, product, lambda cotangent: transpose(cotangent)[0])
