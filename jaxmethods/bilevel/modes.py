"""How `solve` differentiates: one small hashable object a mode, with its static choices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

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
    """Keep what the forward pass has linearised, so that the backward pass doesn't compute it
    again: a quarter of the arithmetic less for the activations of every step in memory."""


@dataclass(frozen=True)
class Truncated:
    """Mixed mode through the last steps only; what came before is taken for a constant."""

    steps: int
    """K: how many steps are differentiated through. T is exact, 0 gives a gradient of zero."""
    save: bool = False
    """As in `Mixed`."""

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps must be 0 or more, got {self.steps}")


@dataclass(frozen=True)
class Implicit:
    r"""The implicit function theorem where the inner optimisation ends.

    d theta*/d hyper = - H^{-1} d^2 loss / d theta d hyper, with H the Hessian of the inner loss in
    theta, at the final parameters and the last batch. Exact where the gradient is zero there.
    """

    solver: Solver = "cg"
    """How H x = v is solved. `cg`: conjugate gradients; H must be positive definite.
    `neumann`: x = rate * sum_i (I - rate H)^i v, which converges for rate < 2 / (largest
    eigenvalue of H) and, cut short, stays sane where H is nearly singular."""
    iterations: int = 100
    """At most so many Hessian-vector products."""
    tolerance: float = 1e-5
    """Stop where the residual (`cg`) or the next term (`neumann`) is so small, relative to v."""
    damping: float = 0.0
    """Added to the diagonal of H: a biased but bounded solution where H is not definite."""
    rate: float = 0.0
    """Step of the Neumann series, which needs it; conjugate gradients don't."""

    def __post_init__(self) -> None:
        _check_choice("solver", self.solver, get_args(Solver))
        if self.iterations < 1:
            raise ValueError(f"iterations must be 1 or more, got {self.iterations}")
        if self.tolerance < 0:
            raise ValueError(f"tolerance must be 0 or more, got {self.tolerance}")
        if self.damping < 0:
            raise ValueError(f"damping must be 0 or more, got {self.damping}")
        if self.solver == "neumann" and not self.rate > 0:
            raise ValueError(
                f"rate must be positive for the Neumann series, got {self.rate}; "
                "a learning rate at which gradient descent on the inner loss converges will do"
            )


Mode = Reverse | Mixed | Truncated | Implicit


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
