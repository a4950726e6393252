"""A linearization that is made in one loop and used in another.

`jax.linearize` leaves residuals: activations, but also constants, its own inputs and what doesn't
change from step to step. Stacked by a scan, each of them would take T times its memory. Here only
those that depend on a step's inputs, and aren't among them, are kept for every step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.extend.core import Literal as Constant


class Saved(NamedTuple):
    """The residuals of a linearization: together with its inputs, all that it needs."""

    each: list[jax.Array]
    """Those of one step."""
    fixed: list[jax.Array]
    """Those that are the same in every step."""


@jax.tree_util.register_static
@dataclass(frozen=True, eq=False)
class Recipe:
    """How residuals are separated and put together again."""

    traced: ClosedJaxpr
    value: Any
    """Structure of the function's value."""
    linear: Any
    """Structure of the linear function, a pytree with the residuals for leaves."""
    sources: tuple[tuple[Literal["input", "each", "fixed"], int], ...]
    """Where every residual comes from, and its place there."""

    def run(self, inputs: Any, fixed: Any) -> tuple[Any, Saved]:
        """The value at the inputs, and the residuals."""
        leaves = jax.tree.leaves((inputs, fixed))
        outputs = jaxpr_as_fun(self.traced)(*leaves)
        value, residuals = outputs[: self.value.num_leaves], outputs[self.value.num_leaves :]
        saved = Saved([], [])
        for (kind, _), residual in zip(self.sources, residuals, strict=True):
            if kind != "input":
                getattr(saved, kind).append(residual)
        return jax.tree.unflatten(self.value, value), saved

    def restore(self, inputs: Any, fixed: Any, saved: Saved) -> Callable:
        """The linear function at the inputs that `run` was given."""
        supply = {"input": jax.tree.leaves((inputs, fixed)), "each": saved.each}
        supply["fixed"] = saved.fixed
        residuals = [supply[kind][place] for kind, place in self.sources]
        return jax.tree.unflatten(self.linear, residuals)


def plan(function: Callable[[Any, Any], tuple[Any, Callable]], inputs: Any, fixed: Any) -> Recipe:
    """Traces `function(inputs, fixed) -> (value, linear function)` and follows its residuals.

    Args:
        function: its second output is that of `jax.linearize`.
        inputs: a step's, or their shapes and dtypes.
        fixed: what every step is given.
    """
    treedefs = []

    def flat(inputs: Any, fixed: Any) -> tuple[Any, list]:
        value, linear = function(inputs, fixed)
        leaves, treedef = jax.tree.flatten(linear)
        treedefs[:] = [jax.tree.structure(value), treedef]
        return value, leaves

    traced = jax.make_jaxpr(flat)(inputs, fixed)
    value, linear = treedefs
    residuals = traced.jaxpr.outvars[value.num_leaves :]
    sources = _sources(traced.jaxpr, residuals, len(jax.tree.leaves(inputs)))
    return Recipe(traced, value, linear, sources)


def _sources(jaxpr: Any, residuals: list, number: int) -> tuple:
    """Where residuals come from; the first `number` arguments change from step to step."""
    places = {variable: place for place, variable in enumerate(jaxpr.invars)}
    changing = set(jaxpr.invars[:number])
    for equation in jaxpr.eqns:
        if any(not isinstance(v, Constant) and v in changing for v in equation.invars):
            changing.update(equation.outvars)
    sources, counts = [], {"each": 0, "fixed": 0}
    for residual in residuals:
        if not isinstance(residual, Constant) and residual in places:
            sources.append(("input", places[residual]))
            continue
        kind = "each" if not isinstance(residual, Constant) and residual in changing else "fixed"
        sources.append((kind, counts[kind]))
        counts[kind] += 1
    return tuple(sources)
