"""A function's Jacobian at a point, as products with it and with its transpose.

What `jax.linearize` makes of functions that have a reverse rule alone (`jax.custom_vjp`), such as
hand-written attention, can't be called. Their cotangent map is linear, too, and its transpose is
the tangent map: J u = (v -> J^T v)^T u.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

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
    value, product = jax.linearize(function, vector)
    if not _refuses(jax.make_jaxpr(product)(vector).jaxpr):
        transpose = jax.linear_transpose(product, vector)
        return Jacobian(value, product, lambda cotangent: transpose(cotangent)[0])
    value, pull = jax.vjp(function, vector)
    back = jax.linear_transpose(lambda cotangent: pull(cotangent)[0], value)
    return Jacobian(value, lambda tangent: back(tangent)[0], lambda cotangent: pull(cotangent)[0])


def _refuses(jaxpr: Jaxpr) -> bool:
    """Whether a tangent map has a part that can be transposed only."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "custom_lin":
            return True
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner) and _refuses(inner.jaxpr if hasattr(inner, "jaxpr") else inner):
                return True
    return False


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)
