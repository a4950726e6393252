"""`jax.jit` for functions that others call: type checkers keep their signatures."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import jax

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
