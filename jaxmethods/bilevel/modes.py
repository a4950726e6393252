"""How `solve` differentiates: one small hashable object a mode, with its static choices."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any, Literal, get_args

Remat = Literal["none", "step", "sqrt", "offload"]
Solver = Literal["cg", "neumann"]


@dataclass(frozen=True)
class Reverse:
    """Plain reverse mode over `lax.scan`: exact, and the only mode that `jax.jvp` goes through."""

    remat: Remat = "none"
    """What is kept for the backward pass. `none`: every residual of every step. `step`: parameters
    and optimizer state of every step, the rest computed again. `sqrt`: those of every sqrt(T)-th
    step, at the price of one more forward pass. `offload`: as `step`, kept in host memory; for
    accelerators."""

    def __post_init__(self) -> None:
        _check_choice("remat", self.remat, get_args(Remat))


@dataclass(frozen=True)
class Mixed:
    """Mixed mode: exact; forward over reverse in every step, only the trajectory is kept."""

    save: bool = False
    """Keep what the forward pass has linearized, so that the backward pass doesn't compute it
    again: a quarter of the arithmetic less for the activations of every step in memory."""

    def __post_init__(self) -> None:
        _check_flag("save", self.save)


@dataclass(frozen=True)
class Truncated:
    """Mixed mode through the last steps only; what came before is taken for a constant.

    Constants are the parameters and what the optimizer has gathered from them and from gradients
    (momentum, second moments). What it merely keeps in its state, such as a rate handed over by
    `optax.inject_hyperparams`, is no result of the steps before and has its gradient.
    """

    steps: int
    """K: how many steps are differentiated through. T is exact, 0 gives a gradient of zero."""
    save: bool = False
    """As in `Mixed`."""

    def __post_init__(self) -> None:
        check_count("steps", self.steps, 0)
        _check_flag("save", self.save)


@dataclass(frozen=True)
class Implicit:
    r"""The implicit function theorem where the inner optimization ends.

    d theta*/d hyper = - H^{-1} d^2 loss / d theta d hyper, with H the Hessian of the inner loss in
    theta, at the final parameters and the last batch. Exact where the gradient is zero there. A
    stationary point is the loss's, so that what only the optimizer knows has no gradient: a rate
    doesn't need one, and weight decay belongs into the loss.
    """

    solver: Solver = "cg"
    """How H x = v is solved. `cg`: conjugate gradients; H must be positive definite.
    `neumann`: x = rate * sum_i (I - rate H)^i v, which converges for rate < 2 / (largest
    eigenvalue of H) and, cut short, stays sane where H is nearly singular."""
    iterations: int = 100
    """The largest number of Hessian-vector products."""
    tolerance: float = 1e-5
    """Stop where the residual (`cg`) or the next term (`neumann`) is so small, relative to v."""
    damping: float = 0.0
    """Added to the diagonal of H: a biased but bounded solution where H is not definite."""
    rate: float = 0.0
    """Step of the Neumann series, which needs it; conjugate gradients don't."""

    def __post_init__(self) -> None:
        _check_choice("solver", self.solver, get_args(Solver))
        check_count("iterations", self.iterations, 1)
        _check_not_negative("tolerance", self.tolerance)
        _check_not_negative("damping", self.damping)
        _check_not_negative("rate", self.rate)
        if self.solver == "neumann" and not self.rate > 0:
            raise ValueError(
                f"rate must be positive for the Neumann series, got {self.rate}; "
                "a learning rate at which gradient descent on the inner loss converges will do"
            )


Mode = Reverse | Mixed | Truncated | Implicit


def check_mode(mode: Any) -> None:
    """Raises ValueError for what is none of the modes."""
    if isinstance(mode, Mode):
        return
    choices = [f"{choice.__name__}()" for choice in get_args(Mode)]
    choices[choices.index("Truncated()")] = "Truncated(steps)"
    got = f"the class {mode.__name__}" if isinstance(mode, type) else repr(mode)
    raise ValueError(f"mode must be one of {', '.join(choices)}, got {got}")


def check_count(name: str, value: Any, least: int) -> int:
    """The value as an int; ValueError for what isn't an integer of at least so much."""
    try:
        count = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = None
    if count is None or count < least:
        raise ValueError(f"{name} must be {least} or more, an integer, got {value}")
    return count


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def _check_not_negative(name: str, value: float) -> None:
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be 0 or more, and finite, got {value}")
