"""One-line refusals of the arguments an environment cannot be built from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np


def check_integer(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """An argument as an int, if it is one within its bounds.

    Args:
        name: of the argument, for the message.
        value: what came.
        minimum: the smallest that is allowed.
        maximum: the largest; None: any.

    Returns:
        `value` as a Python int.

    Raises:
        ValueError: no integer (a bool isn't one), or out of bounds.
    """
    expected = f"an integer >= {minimum}" if maximum is None else f"in [{minimum}, {maximum}]"
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_integer or value < minimum or (maximum is not None and value > maximum):
        raise ValueError(f"{name} must be {expected}, got {value!r}")
    return int(value)


def check_flag(name: str, value: Any) -> bool:
    """Returns `value` if it is True or False; raises ValueError otherwise."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def check_fraction(name: str, value: Any) -> float:
    """Returns `value` as a float in [0, 1]; raises ValueError otherwise."""
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value!r}")
    return float(value)


def check_number(name: str, value: Any, minimum: float) -> float:
    """Returns `value` as a finite float >= minimum; raises ValueError otherwise."""
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not is_number or not minimum <= value < np.inf:
        raise ValueError(f"{name} must be a number >= {minimum:g}, got {value!r}")
    return float(value)


def check_choice(name: str, value: Any, choices: Collection[str]) -> str:
    """Returns `value` if it is one of `choices`; raises ValueError otherwise."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value


def check_time_limit(value: Any) -> int | None:
    """Returns a positive number of steps, or None for episodes that are never truncated."""
    if value is None:
        return None
    return check_integer("time_limit", value, 1)


def check_generator(generator: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError unless `generator(key)` gives a state with fields of these shapes."""
    if not callable(generator):
        raise ValueError(f"generator must be callable, got {generator!r}")
    state = jax.eval_shape(lambda key: generator(key), jax.random.key(0))
    for field, expected in shapes.items():
        got = getattr(state, field, None)
        if got is None or got.shape != expected:
            shape = "none" if got is None else got.shape
            raise ValueError(f"generator must give {field} of shape {expected}, got {shape}")
