"""`jax.jit` for functions that others call: type checkers keep their signatures."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar, cast

import jax

QUICK: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
"""How XLA compiles fast, on CPU."""
if jax.__version_info__ < (0, 11):
    # Emitters of fusions take half of the time; later versions know no such option.
    QUICK["xla_cpu_use_fusion_emitters"] = False

P = ParamSpec("P")
R = TypeVar("R")


def compiled(*static: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: `jax.jit`, which type checkers would take for a callable of anything.

    Args:
        static: names of the arguments that are compile-time constants.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        return cast(Callable[P, R], jax.jit(function, static_argnames=static))

    return decorate


def compiled_quickly(*static: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The same for a program that runs once or twice.

    On CPU XLA doesn't optimize what it generates, which takes longer than it saves then. To be
    called where nothing is traced.

    Args:
        static: names of the arguments that are compile-time constants.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @cache
        def program() -> Any:  # when it is first called: the backend isn't known before
            options = QUICK if jax.default_backend() == "cpu" else None
            return jax.jit(function, static_argnames=static, compiler_options=options)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return program()(*args, **kwargs)

        return call

    return decorate
