"""Settings of a merge of checkpoints: which are merged, how, and what is left alone.

Which algorithms there are and which parameters each has is declared in `static_merges`; here are
the parameters' types and bounds.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from jaxmethods.config import Config, Fraction
from jaxmethods.merging.checkpoints.parts import Settings
from jaxmethods.merging.checkpoints.static_merges import (
    PARAMETERS,
    STATIC_MERGES,
    StaticMerge,
    in_words,
)

if TYPE_CHECKING:
    Algorithm: TypeAlias = str
else:
    Algorithm = Literal[tuple(STATIC_MERGES)]


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

    Parameters that aren't given have the algorithm's defaults; those that it doesn't have are an
    error.
    """

    base: Path
    """Model folder, or safetensors file, that the experts were fine-tuned from; the result has its
    names, types and files."""
    experts: Annotated[tuple[Path, ...], Field(min_length=1)]
    """Model folders, or safetensors files, with the base's tensors."""
    algorithm: Annotated[
        Algorithm,
        Field(
            description="How, with the parameters it has and their defaults: "
            + "; ".join(map(in_words, STATIC_MERGES.values()))
            + "."
        ),
    ]
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
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of masks, where the algorithm draws them."""
    card: bool = True
    """Write README.md: how the result was made, and hashes of the inputs' weights."""

    @field_validator("exclude")
    @classmethod
    def _compile(cls, exclude: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(compiled(pattern) for pattern in exclude)

    @model_validator(mode="after")
    def _parameters_fit(self) -> MergeConfig:
        merge = self.declaration
        for name in sorted(PARAMETERS - merge.parameters.keys()):
            if getattr(self, name) is not None:
                has = ", ".join(merge.parameters) or "none"
                raise ValueError(
                    f"{name}: {merge.name} has no such parameter (it has: {has}); leave it out"
                )
        if self.rules and "coefficient" not in merge.parameters:
            raise ValueError(f"rules: {merge.name} has no coefficient")
        if merge.experts is not None and len(self.experts) != merge.experts:
            raise ValueError(
                f"experts: {merge.name} takes {merge.experts}, got {len(self.experts)}"
            )
        if merge.check is not None:
            merge.check(self.settings)
        return self

    @model_validator(mode="after")
    def _coefficients_fit(self) -> MergeConfig:
        given = {"coefficient": self.coefficient}
        given |= {f"rules.{i}.coefficient": rule.coefficient for i, rule in enumerate(self.rules)}
        for name, value in given.items():
            if not isinstance(value, tuple):
                continue
            if self.declaration.one_coefficient:
                raise ValueError(f"{name}: {self.algorithm} takes one number, got {value}")
            if len(value) != len(self.experts):
                raise ValueError(
                    f"{name}: expected one number, or one for each of the {len(self.experts)} "
                    f"experts, got {value}"
                )
        return self

    @property
    def declaration(self) -> StaticMerge:
        """What is known of the algorithm."""
        return STATIC_MERGES[self.algorithm]

    @property
    def settings(self) -> Settings:
        """Every parameter of the algorithm, as given or by default, and the seed of its masks."""
        found: dict[str, Any] = dict(self.declaration.parameters)
        given = {name: getattr(self, name) for name in found}
        found |= {name: value for name, value in given.items() if value is not None}
        return found | ({"seed": self.seed} if self.declaration.random else {})


def compiled(pattern: str) -> str:
    """The pattern itself. Raises `ValueError` where it is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression ({error})") from error
    return pattern
