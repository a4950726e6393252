"""Settings of `jaxmethods merge`: which checkpoints are merged, how, and what is left alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from jaxmethods.config import Config

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
MergeMethod: TypeAlias = Literal[
    "average",
    "task_arithmetic",
    "ties",
    "dare",
    "dare_ties",
    "breadcrumbs",
    "della",
    "pcb",
    "model_stock",
    "slerp",
    "tsv",
    "iso_c",
]
USED: dict[str, dict[str, Any]] = {
    "average": {"coefficient": None, "normalize": True},
    "task_arithmetic": {"coefficient": 0.3},
    "ties": {"coefficient": 0.3, "density": 0.2, "merge": "sum", "scope": "global"}
    | {"flavour": "paper"},
    "dare": {"coefficient": 0.3, "drop": 0.5, "rescale": True, "matrices_only": False, "seed": 0},
    "dare_ties": {"coefficient": 0.3, "drop": 0.5, "density": 1.0, "merge": "sum"}
    | {"scope": "global", "seed": 0},
    "breadcrumbs": {"coefficient": 0.3, "density": 0.9, "gamma": 0.01},
    "della": {"coefficient": 0.3, "density": 0.5, "epsilon": 0.1, "rescale": True, "seed": 0},
    "pcb": {"coefficient": 1.2, "ratio": 0.1},
    "model_stock": {},
    "slerp": {"coefficient": 0.5},
    "tsv": {"coefficient": 1.0},
    "iso_c": {"coefficient": 1.0},
}
"""The parameters that a method has, with their defaults."""
ONE_COEFFICIENT = {"pcb", "slerp", "tsv", "iso_c"}
"""Methods whose coefficient is not one for each expert."""


class Rule(Config):
    """A coefficient for some tensors."""

    pattern: str
    """Regular expression searched in a tensor's name."""
    coefficient: float | tuple[float, ...] | None = None
    """For all experts, or one for each."""
    over_depth: tuple[float, ...] = ()
    """Instead: values from the first layer to the last, interpolated linearly; the pattern's first
    group is the layer's number, as in `layers[.](\\d+)[.]mlp`."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        return compiled(pattern)

    @model_validator(mode="after")
    def _one_of_two(self) -> Rule:
        if (self.coefficient is None) == (not self.over_depth):
            raise ValueError("expected either coefficient or over_depth")
        if self.over_depth and re.compile(self.pattern).groups < 1:
            raise ValueError(
                f"over_depth: the pattern {self.pattern!r} has no group for the layer's number"
            )
        return self


class MergeConfig(Config):
    """One checkpoint out of several that were fine-tuned from the same base.

    Parameters that aren't given have the method's defaults; those that it doesn't have are an
    error.
    """

    base: Path
    """Model folder, or safetensors file, that the experts were fine-tuned from; the result has its
    names, types and files."""
    experts: Annotated[tuple[Path, ...], Field(min_length=1)]
    method: MergeMethod
    coefficient: float | tuple[float, ...] | None = None
    """lambda, for all experts or one for each; the weights of `average` (equal ones if none are
    given); how far `slerp` goes from base to expert. Above 1, `task_arithmetic` of one expert
    extrapolates (ExPO)."""
    rules: tuple[Rule, ...] = ()
    """Coefficients of tensors by name; the first rule whose pattern is found counts."""
    exclude: tuple[str, ...] = ()
    """Tensors with one of these regular expressions in their name are the base's; experts may lack
    them, or have them in other shapes: heads, or the text tower of vision experts."""
    normalize: bool | None = None
    """Divide the weights of `average` by their sum."""
    density: Fraction | None = None
    """Share of the entries that are kept."""
    merge: Literal["sum", "mean", "max"] | None = None
    """How TIES makes one entry of those that agree."""
    scope: Literal["global", "leaf"] | None = None
    """Where TIES compares magnitudes: in the whole model (reads the experts three times), or
    within a tensor."""
    flavour: Literal["paper", "mergekit"] | None = None
    """See `sign_election.ties`; mergekit's compares within a tensor."""
    drop: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """DARE's p."""
    rescale: bool | None = None
    """Make up for what was dropped."""
    matrices_only: bool | None = None
    """Drop entries of tensors with two or more axes alone."""
    gamma: Fraction | None = None
    """Share of the largest entries that Breadcrumbs drops."""
    epsilon: Fraction | None = None
    """Half the range of DELLA's keep probabilities."""
    ratio: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Share of the entries that compete in PCB."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Of the masks."""
    card: bool = True
    """Write README.md: how the result was made, and hashes of the inputs' weights."""

    @field_validator("exclude")
    @classmethod
    def _compile(cls, exclude: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(compiled(pattern) for pattern in exclude)

    @model_validator(mode="after")
    def _parameters_fit(self) -> MergeConfig:
        used = USED[self.method]
        for name in PARAMETERS - used.keys():
            if getattr(self, name) is not None:
                has = ", ".join(used) or "none"
                raise ValueError(f"{name}: {self.method} has no such parameter (it has: {has})")
        if self.rules and "coefficient" not in used:
            raise ValueError(f"rules: {self.method} has no coefficient")
        if self.flavour == "mergekit" and (self.merge or self.scope):
            raise ValueError("flavour: mergekit's has neither merge nor scope")
        if self.method == "slerp" and len(self.experts) != 1:
            raise ValueError(f"experts: slerp takes one, got {len(self.experts)}")
        if self.method == "della":
            density, epsilon = self.value("density"), self.value("epsilon")
            if not epsilon <= density <= 1 - epsilon:
                raise ValueError(
                    f"epsilon: expected density ± epsilon in [0, 1], got {density} ± {epsilon}"
                )
        return self

    @model_validator(mode="after")
    def _coefficients_fit(self) -> MergeConfig:
        given = {"coefficient": self.coefficient}
        given |= {f"rules.{i}.coefficient": rule.coefficient for i, rule in enumerate(self.rules)}
        for name, value in given.items():
            if not isinstance(value, tuple):
                continue
            if self.method in ONE_COEFFICIENT:
                raise ValueError(f"{name}: {self.method} takes one number, got {value}")
            if len(value) != len(self.experts):
                raise ValueError(
                    f"{name}: expected one number, or one for each of the {len(self.experts)} "
                    f"experts, got {value}"
                )
        return self

    def value(self, parameter: str) -> Any:
        """A parameter of the method: what was given, or the method's default."""
        given = getattr(self, parameter)
        return USED[self.method][parameter] if given is None else given


PARAMETERS = {name for used in USED.values() for name in used}


def compiled(pattern: str) -> str:
    """The pattern itself. Raises `ValueError` where it is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression ({error})") from error
    return pattern
