"""Gradients of single examples in linear layers, as what they are products of.

For z = a W with an example's inputs a [T, I] and cotangents d [T, O] of z, its gradient is a^T d.
Inner products of the gradients of examples n and m,

    <a_n^T d_n, a_m^T d_m> = sum_{t, s} (a_nt . a_ms) (d_nt . d_ms),

need neither of them (Goodfellow, "Efficient per-example gradient computations", 2015; for kernels
Novak et al. 2022). The layers are found by tracing the network to a jaxpr: a product of something
that has the examples' axis with a parameter that is used nowhere else. A bias that is added to such
a product, and to nothing else, is one more row of W, whose input is 1. What isn't found, such as
layers stacked in a loop or within a function that has a derivative of its own, is `rest`, and
differentiated as ever.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from jaxmethods.interpret.representation.capture import inlined
from jaxmethods.interpret.trees import PRECISE, Vector, merge


class Layers(NamedTuple):
    """A network's linear layers on a batch."""

    outputs: jax.Array
    """[N, ...]."""
    inputs: list[jax.Array]
    """[N, T, I] of every layer, where it has a bias with a last column of ones; T is 1 where there
    is one row an example."""
    pull: Callable[[jax.Array], list[jax.Array]]
    """Cotangents of the outputs -> those of every layer's products, [N, T, O]."""
    rest: Vector
    """The parameters of no layer; None in place of the others."""
    offsets: list[jax.Array]
    """Zeros in the shapes of the layers' products."""
    run: Callable[[list[jax.Array], Vector], jax.Array]
    """(what is added to the products, parameters of no layer) -> outputs."""


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
    products = _products(closed.jaxpr, len(leaves), count)
    # An axis that happens to be as long as that of the examples is not theirs: with one example
    # more it stays as it is.
    more = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((count + 1, *jnp.shape(x)[1:]), jnp.result_type(x)), inputs
    )
    longer = _products(jax.make_jaxpr(function)(vector, more).jaxpr, len(leaves), count + 1)
    places = [
        place
        for place, found in sorted(products.items())
        if place in longer and longer[place].shape == (count + 1, *found.shape[1:])
    ]
    biases = {place: products[place].bias for place in places}
    taken = {*places, *biases.values()}

    def evaluate(offsets: Sequence[jax.Array], rest: Vector) -> tuple[jax.Array, list[jax.Array]]:
        added = dict(zip(places, offsets, strict=True))
        seen: dict[int, jax.Array] = {}
        values = [*jax.tree.leaves(merge(vector, rest)), *jax.tree.leaves(inputs)]
        (found,) = _evaluate(closed.jaxpr, closed.consts, values, own, added, seen)
        return found, [_rows(seen[place], biases[place] is not None) for place in places]

    rest = structure.unflatten(
        [None if place in taken else leaf for place, leaf in enumerate(leaves)]
    )
    dtype = jnp.result_type(*leaves)
    zeros = [jnp.zeros(products[place].shape, dtype) for place in places]
    outputs, pull, activations = jax.vjp(lambda added: evaluate(added, rest), zeros, has_aux=True)

    def pulled(cotangent: jax.Array) -> list[jax.Array]:
        return [d.reshape(count, -1, d.shape[-1]) for d in pull(cotangent)[0]]

    def run(offsets: list[jax.Array], rest: Vector) -> jax.Array:
        return evaluate(offsets, rest)[0]

    return Layers(outputs, activations, pulled, rest, zeros, run)


def _rows(inputs: jax.Array, biased: bool) -> jax.Array:
    """A layer's inputs [N, ..., I] as [N, T, I], or [N, T, I + 1] with ones for its bias."""
    rows = inputs.reshape(len(inputs), -1, inputs.shape[-1])
    if not biased:
        return rows
    return jnp.concatenate([rows, jnp.ones((*rows.shape[:2], 1), rows.dtype)], -1)


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


class Product(NamedTuple):
    """A product with a parameter that is used nowhere else."""

    shape: tuple[int, ...]
    bias: int | None
    """The place of the parameter that is added to it, and to nothing else."""


class Value(NamedTuple):
    """What is known of a variable of a jaxpr."""

    kind: str
    """"parameter", "row" (a parameter [O] as [1, ..., 1, O]), "product" of a layer, or "rows": what
    was [N, ..., I] as [N ..., I]."""
    place: int
    """The parameter's; -1 of rows."""
    lead: tuple[int, ...] = ()
    """[N, ...] of rows."""


def _products(jaxpr: Any, parameters: int, count: int) -> dict[int, Product]:
    """Products of linear layers, by the place of their parameter."""
    known = {
        v: Value("parameter", i) for v, i in zip(jaxpr.invars, range(parameters), strict=False)
    }
    used: Counter[Value] = Counter()
    shapes: dict[int, tuple[int, ...]] = {}
    sums: dict[int, int] = {}
    _find(jaxpr, known, used, shapes, sums, count)
    used.update(value for value in map(known.get, _variables(jaxpr.outvars)) if value is not None)
    biases = {
        place: bias
        for place, bias in sums.items()
        if used[Value("product", place)] == used[Value("row", bias)] == 1
        and used[Value("parameter", bias)] == 1
    }
    return {
        place: Product(shape, biases.get(place))
        for place, shape in shapes.items()
        if used[Value("parameter", place)] == 1
    }


def _variables(atoms: Sequence[Any]) -> list[Any]:
    """Inputs of an equation with None in place of numbers, which have no hash."""
    return [None if isinstance(atom, Literal) else atom for atom in atoms]


def _layer(equation: Any, own: dict[Any, int]) -> int | None:
    """The place of the parameter of a product [..., I] with a parameter [I, O], if it is one."""
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
    return own[right] if plain and last >= 1 else None


def _inlined(equation: Any) -> Any:
    """What an equation calls once, unless it has a derivative of its own, which would be lost."""
    return None if equation.primitive.name.startswith("custom_") else inlined(equation)


def _find(
    jaxpr: Any,
    known: dict[Any, Value],
    used: Counter[Value],
    shapes: dict[int, tuple[int, ...]],
    sums: dict[int, int],
    count: int,
) -> None:
    """Counts uses of what is known, and notes products of layers and what is added to them."""
    for equation in jaxpr.eqns:
        given = [known.get(variable) for variable in _variables(equation.invars)]
        inner = _inlined(equation)
        if inner is not None:
            pairs = zip(inner.jaxpr.invars, given, strict=True)
            inside = {variable: value for variable, value in pairs if value is not None}
            _find(inner.jaxpr, inside, used, shapes, sums, count)
            out = map(inside.get, _variables(inner.jaxpr.outvars))
        else:
            out = [_made(equation, given, known, shapes, sums, count)]
            if out != given:  # else a product in another shape
                used.update(value for value in given if value is not None)
        pairs = zip(equation.outvars, out, strict=False)
        known.update({variable: value for variable, value in pairs if value is not None})


def _made(
    equation: Any,
    given: list[Value | None],
    known: dict[Any, Value],
    shapes: dict[int, tuple[int, ...]],
    sums: dict[int, int],
    count: int,
) -> Value | None:
    """What an equation's output is, if it is of a layer."""
    made = equation.outvars[0].aval
    if equation.primitive.name == "add":
        kinds = [value and value.kind for value in given]
        if sorted(filter(None, kinds)) == ["product", "row"]:
            product, row = given[kinds.index("product")], given[kinds.index("row")]
            assert product is not None
            assert row is not None
            width = equation.invars[kinds.index("row")].aval.shape[-1]
            if made.shape == shapes[product.place] and width == made.shape[-1]:
                sums[product.place] = row.place
        return None
    if equation.primitive.name in ("broadcast_in_dim", "reshape"):
        source = given[0]
        width = getattr(equation.invars[0].aval, "shape", ())
        row = len(width) == 1 and made.shape == (*[1] * (len(made.shape) - 1), *width)
        if source and source.kind == "parameter" and row:
            return Value("row", source.place)
        if equation.primitive.name == "reshape" and len(width) > 1:
            return _reshaped(source, width, made.shape, shapes, count)
        return None
    if equation.primitive.name != "dot_general":
        return None
    own = {v: value.place for v, value in known.items() if value.kind == "parameter"}
    place = _layer(equation, own)
    if place is None:
        return None
    rows = given[0]
    lead = rows.lead if rows and rows.kind == "rows" else made.shape[:-1]
    if lead[0] != count:
        return None
    shapes[place] = (*lead, made.shape[-1])
    return Value("product", place)


def _reshaped(
    source: Value | None,
    before: tuple[int, ...],
    after: tuple[int, ...],
    shapes: dict[int, tuple[int, ...]],
    count: int,
) -> Value | None:
    """What [N, ..., I] as rows is, and the product of such rows as [N, ..., O]."""
    if source is None:
        flat = before[0] == count and after == (math.prod(before[:-1]), before[-1])
        return Value("rows", -1, before[:-1]) if flat else None
    return source if source.kind == "product" and after == shapes[source.place] else None


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
        inner = _inlined(equation)
        if inner is not None:
            inside = {
                new: own[old]
                for new, old in zip(inner.jaxpr.invars, equation.invars, strict=True)
                if not isinstance(old, Literal) and old in own
            }
            made = _evaluate(inner.jaxpr, inner.consts, given, inside, added, seen)
            for new, old in zip(equation.outvars, inner.jaxpr.outvars, strict=True):
                if not isinstance(old, Literal) and old in inside:
                    own[new] = inside[old]  # a parameter that is handed on
        else:
            params = equation.primitive.get_bind_params(equation.params)
            made = equation.primitive.bind(*given, **params)
            made = made if equation.primitive.multiple_results else [made]
            place = _layer(equation, own)
            if place in added:
                offset = added[place]
                seen[place] = given[0].reshape(*offset.shape[:-1], given[0].shape[-1])
                made = [made[0] + offset.reshape(made[0].shape).astype(made[0].dtype)]
        values.update(zip(equation.outvars, made, strict=True))
    return [read(variable) for variable in jaxpr.outvars]
