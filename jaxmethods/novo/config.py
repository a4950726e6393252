"""Configs of norm voting: how heads are chosen, and the small world it is shown on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jaxmethods.config import Config

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class SelectionConfig(Config):
    """How the voting heads are chosen."""

    samples: PositiveInt = 30
    """Labelled questions."""
    q: Fraction = 0.85
    """Quantile that a head's count must exceed."""
    rule: Literal["code", "paper"] = "code"
    """See `heads.select_heads`."""
    voters: Literal["both", "max", "min"] = "both"
    """Which directions may vote."""


class World(Config):
    """Sizes and habits of the world of `misconceptions`."""

    entities: PositiveInt = 48
    relations: PositiveInt = 4
    values: Annotated[int, Field(ge=4)] = 12
    """Of each relation."""
    myth_share: Fraction = 0.6
    true_share: Fraction = 0.25
    delayed: bool = False
    """A word between full stop and verdict: the negative control."""

    @model_validator(mode="after")
    def _shares_fit(self) -> World:
        if self.myth_share + self.true_share > 1:
            raise ValueError(
                "myth_share, true_share: expected a sum of at most 1, "
                f"got {self.myth_share + self.true_share}"
            )
        return self


class LearnerConfig(Config):
    """The decoder that learns the world, and how it is trained."""

    layers: PositiveInt = 4
    width: PositiveInt = 128
    mlp_width: PositiveInt = 256
    heads: PositiveInt = 8
    kv_heads: PositiveInt = 4
    batch: PositiveInt = 64
    steps: PositiveInt = 1250
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    """Peak of a one-cycle schedule."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest global norm of a gradient."""
