"""Values inside a function, by name: read them, or put others in their place.

A model names a value with `jax.ad_checkpoint.checkpoint_name(x, "name")`, which computes nothing.

    captured = capture(apply, ["layer1"])(params, x)             # {"layer1": [value, ...]}
    patched = intervene(apply, {"layer1": lambda x: 0 * x})      # a function like `apply`

Both trace the function to a jaxpr and evaluate that with the named values read or replaced, inside
jit, vmap and grad as well; no hooks, no state. Linen modules without names have theirs through
`flax_intermediates`. A name inside `lax.scan` (stacked layers) is reached only where the loop is
unrolled, and asking for one is an error rather than an empty answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

INLINED = ("pjit", "jit", "closed_call", "core_call", "remat2", "checkpoint", "custom_jvp_call")
INLINED_VJP = ("custom_vjp_call", "custom_vjp_call_jaxpr")


def capture(function: Callable[..., Any], names: Sequence[str]) -> Callable[..., dict[str, list]]:
    """A function that returns the named values.

    Args:
        function: pure, arrays in and arrays out.
        names: to read.

    Returns:
        (as `function` takes) -> name -> its values in the order in which they are computed.

    Raises:
        ValueError: when called: a name that the function doesn't have.
    """

    def call(*args: Any, **kwargs: Any) -> dict[str, list]:
        found: dict[str, list] = {name: [] for name in names}

        def read(name: str, value: jax.Array) -> jax.Array:
            if name in found:
                found[name].append(value)
            return value

        _run(function, read, args, kwargs, set(names))
        return found

    return call


def intervene(
    function: Callable[..., Any], changes: Mapping[str, Callable[[jax.Array], jax.Array]]
) -> Callable[..., Any]:
    """The function with named values replaced by what is made of them.

    Args:
        function: pure, arrays in and arrays out.
        changes: name -> value to the value that later computations get, of the same shape.

    Returns:
        A function like `function`; differentiable in what the changes close over, too.

    Raises:
        ValueError: when called: a name that the function doesn't have, or a value of another shape.
    """

    def change(name: str, value: jax.Array) -> jax.Array:
        if name not in changes:
            return value
        new = changes[name](value)
        if new.shape != value.shape:
            raise ValueError(f"changes[{name!r}]: expected shape {value.shape}, got {new.shape}")
        return new.astype(value.dtype)

    def call(*args: Any, **kwargs: Any) -> Any:
        return _run(function, change, args, kwargs, set(changes))

    return call


def flax_intermediates(
    module: Any, variables: Any, *args: Any, keep: Callable[[str], bool] = lambda _: True
) -> dict[str, jax.Array]:
    """Outputs of a Linen module's submodules, by their path.

    Args:
        module: a Linen module.
        variables: its variables.
        args: of its call.
        keep: of a path such as "encoder/layer_0".

    Returns:
        path -> output of its (last) call.
    """
    _, state = module.apply(variables, *args, capture_intermediates=True, mutable=["intermediates"])
    named = jax.tree_util.tree_leaves_with_path(
        state["intermediates"], is_leaf=lambda x: isinstance(x, tuple)
    )
    paths = {"/".join(str(key.key) for key in path[:-1]): value[-1] for path, value in named}
    return {path: value for path, value in paths.items() if keep(path)}


def _run(
    function: Callable[..., Any],
    at_name: Callable[[str, jax.Array], jax.Array],
    args: tuple,
    kwargs: dict,
    wanted: set[str],
) -> Any:
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args, **kwargs)
    reachable, hidden = _names(closed.jaxpr)
    missing = wanted - reachable
    if missing:
        name = min(missing)
        where = "only inside a loop; unroll it" if name in hidden else "not there"
        known = ", ".join(sorted(reachable)) or "none"
        raise ValueError(f"names: expected some of {known}; {name!r} is {where}")
    leaves = jax.tree.leaves((args, kwargs))
    outputs = _evaluate(closed.jaxpr, closed.consts, leaves, at_name)
    return jax.tree.unflatten(jax.tree.structure(shapes), outputs)


def inlined(equation: Any) -> ClosedJaxpr | None:
    """What an equation calls once, if it is a call."""
    if equation.primitive.name not in INLINED + INLINED_VJP:
        return None
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = equation.params.get(key)
        if isinstance(inner, ClosedJaxpr):
            return inner
        if isinstance(inner, Jaxpr):
            return ClosedJaxpr(inner, ())
    return None


def _names(jaxpr: Jaxpr) -> tuple[set[str], set[str]]:
    """Names that evaluation passes, and those inside loops and branches."""
    reachable, hidden = set(), set()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "name":
            reachable.add(equation.params["name"])
        inner = inlined(equation)
        if inner is not None:
            own, deeper = _names(inner.jaxpr)
            reachable, hidden = reachable | own, hidden | deeper
            continue
        for sub in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: isinstance(x, ClosedJaxpr | Jaxpr)
        ):
            if isinstance(sub, ClosedJaxpr | Jaxpr):
                inside = _names(sub.jaxpr if isinstance(sub, ClosedJaxpr) else sub)
                hidden |= inside[0] | inside[1]
    return reachable, hidden


def _evaluate(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    args: Sequence[Any],
    at_name: Callable[[str, jax.Array], jax.Array],
) -> list[Any]:
    values: dict[Any, Any] = {}

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else values[variable]

    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))
    for equation in jaxpr.eqns:
        given = [read(variable) for variable in equation.invars]
        inner = inlined(equation)
        if equation.primitive.name == "name":
            made = [at_name(equation.params["name"], given[0])]
        elif inner is not None and _names(inner.jaxpr)[0]:
            made = _evaluate(inner.jaxpr, inner.consts, given, at_name)
        else:
            params = equation.primitive.get_bind_params(equation.params)
            made = equation.primitive.bind(*given, **params)
            made = made if equation.primitive.multiple_results else [made]
        values.update(zip(equation.outvars, made, strict=True))
    return [read(variable) for variable in jaxpr.outvars]
