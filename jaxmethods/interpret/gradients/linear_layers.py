"""Gradients of single examples in linear layers, as what they are products of.

For z = a W with an example's inputs a [T, I] and cotangents d [T, O] of z, its gradient is a^T d.
Inner products of the gradients of examples n and m,

    <a_n^T d_n, a_m^T d_m> = sum_{t, s} (a_nt . a_ms) (d_nt . d_ms),

need neither of them (Goodfellow, "Efficient per-example gradient computations", 2015; for kernels
Novak et al. 2022). The layers are found by tracing the network to a jaxpr: a product of something
that has the examples' axis with a parameter that is used nowhere else. What isn't found, such as
biases, or layers stacked in a loop, is `rest`, and differentiated as ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from jaxmethods.interpret.representation.capture import inlined
from jaxmethods.interpret.trees import PRECISE, Vector


class Layers(NamedTuple):
    """A network's linear layers on a batch."""

    outputs: jax.Array
    """[N, ...]."""
    inputs: list[jax.Array]
    """[N, T, I] of every layer; T is 1 where there is one row an example."""
    pull: Callable[[jax.Array], list[jax.Array]]
    """Cotangents of the outputs -> those of every layer's products, [N, T, O]."""
    rest: Vector
    """The parameters of no layer; None in place of the others."""


def linear_layers(
    function: Callable[[Vector, Any], jax.Array], vector: Vector, inputs: Any
) -> Layers:
    """Finds the linear layers of a network and runs it.

    Args:
        function: (vector, inputs [N, ...]) -> outputs [N, ...]; examples don't see each other.
        vector: parameters.
        inputs: of N examples.

    Returns:
        What products of gradients are made of.
    """
    leaves, structure = jax.tree.flatten(vector)
    count = jax.tree.leaves(inputs)[0].shape[0]
    closed = jax.make_jaxpr(function)(vector, inputs)
    own = dict(zip(closed.jaxpr.invars, range(len(leaves)), strict=False))
    shapes = _products(closed.jaxpr, len(leaves), count)
    # An axis that happens to be as long as that of the examples is not theirs: with one example
    # more it stays as it is.
    more = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((count + 1, *jnp.shape(x)[1:]), jnp.result_type(x)), inputs
    )
    longer = _products(jax.make_jaxpr(function)(vector, more).jaxpr, len(leaves), count + 1)
    places = [
        place
        for place, shape in sorted(shapes.items())
        if longer.get(place) == (count + 1, *shape[1:])
    ]

    def run(offsets: Sequence[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        added = dict(zip(places, offsets, strict=True))
        seen: dict[int, jax.Array] = {}
        values = [*leaves, *jax.tree.leaves(inputs)]
        (found,) = _evaluate(closed.jaxpr, closed.consts, values, own, added, seen)
        return found, [seen[place].reshape(count, -1, seen[place].shape[-1]) for place in places]

    dtype = jnp.result_type(*leaves)
    zeros = [jnp.zeros(shapes[place], dtype) for place in places]
    outputs, pull, activations = jax.vjp(run, zeros, has_aux=True)

    def pulled(cotangent: jax.Array) -> list[jax.Array]:
        return [d.reshape(count, -1, d.shape[-1]) for d in pull(cotangent)[0]]

    rest = structure.unflatten(
        [None if place in places else leaf for place, leaf in enumerate(leaves)]
    )
    return Layers(outputs, activations, pulled, rest)


def gram(a: jax.Array, d: jax.Array) -> jax.Array:
    """Inner products [N, N] of gradients a^T d of examples; a [N, T, I], d [N, T, O]."""
    if a.shape[1] == 1:
        return (a[:, 0] @ a[:, 0].T) * (d[:, 0] @ d[:, 0].T)
    products = jnp.einsum("nti,nto->nio", a, d, precision=PRECISE)
    flat = products.reshape(len(a), -1)
    return jnp.matmul(flat, flat.T, precision=PRECISE)


def squares(a: jax.Array, d: jax.Array) -> jax.Array:
    """|a^T d|^2 of every example, [N]; whichever of [T, T] and [I, O] is smaller is made."""
    if a.shape[1] == 1:
        return jnp.sum(a**2, axis=(1, 2)) * jnp.sum(d**2, axis=(1, 2))
    if a.shape[1] ** 2 <= a.shape[2] * d.shape[2]:
        inner = jnp.einsum("nti,nsi->nts", a, a, precision=PRECISE)
        return jnp.sum(inner * jnp.einsum("nto,nso->nts", d, d, precision=PRECISE), axis=(1, 2))
    products = jnp.einsum("nti,nto->nio", a, d, precision=PRECISE)
    return jnp.sum(products**2, axis=(1, 2))


def _products(jaxpr: Any, parameters: int, count: int) -> dict[int, tuple[int, ...]]:
    """Shapes of the products of linear layers, by the place of their parameter."""
    own = dict(zip(jaxpr.invars, range(parameters), strict=False))
    used: Counter = Counter()
    shapes: dict[int, tuple] = {}
    _find(jaxpr, own, used, shapes, count)
    return {place: shape for place, shape in shapes.items() if used[place] == 1}


def _layer(equation: Any, own: dict[Any, int], count: int) -> int | None:
    """The place of the parameter of a linear layer, if an equation is one."""
    if equation.primitive.name != "dot_general":
        return None
    left, right = equation.invars
    (contracted, batch) = equation.params["dimension_numbers"]
    if isinstance(right, Literal) or right not in own or right.aval.ndim != 2:
        return None
    if isinstance(left, Literal) or left in own or batch != ((), ()):
        return None
    last = left.aval.ndim - 1
    plain = tuple(contracted[0]) == (last,) and tuple(contracted[1]) == (0,)
    return own[right] if plain and last >= 1 and left.aval.shape[0] == count else None


def _find(
    jaxpr: Any, own: dict[Any, int], used: Counter, shapes: dict[int, tuple], count: int
) -> None:
    """Counts uses of parameters, and notes the shapes of the products of layers."""
    for equation in jaxpr.eqns:
        inner = inlined(equation)
        given = [None if isinstance(v, Literal) else own.get(v) for v in equation.invars]
        if inner is not None:
            inside = {
                variable: place
                for variable, place in zip(inner.jaxpr.invars, given, strict=True)
                if place is not None
            }
            _find(inner.jaxpr, inside, used, shapes, count)
            continue
        used.update(place for place in given if place is not None)
        place = _layer(equation, own, count)
        if place is not None:
            shapes[place] = equation.outvars[0].aval.shape
    for variable in jaxpr.outvars:
        if not isinstance(variable, Literal) and variable in own:
            used[own[variable]] += 1


def _evaluate(
    jaxpr: Any,
    consts: Sequence[Any],
    args: Sequence[Any],
    own: dict[Any, int],
    added: dict[int, jax.Array],
    seen: dict[int, jax.Array],
) -> list[Any]:
    """Runs a jaxpr, adds offsets to the products of layers, and keeps their inputs."""
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        given = [read(variable) for variable in equation.invars]
        inner = inlined(equation)
        if inner is not None:
            inside = {
                new: own[old]
                for new, old in zip(inner.jaxpr.invars, equation.invars, strict=True)
                if not isinstance(old, Literal) and old in own
            }
            made = _evaluate(inner.jaxpr, inner.consts, given, inside, added, seen)
        else:
            params = equation.primitive.get_bind_params(equation.params)
            made = equation.primitive.bind(*given, **params)
            made = made if equation.primitive.multiple_results else [made]
            place = _layer(equation, own, len(given[0])) if given and jnp.ndim(given[0]) else None
            if place in added:
                seen[place] = given[0]
                made = [made[0] + added[place].astype(made[0].dtype)]
        values.update(zip(equation.outvars, made, strict=True))
    return [read(variable) for variable in jaxpr.outvars]
