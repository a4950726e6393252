"""Configs of the diagnostics: a report on a model folder, and a network that is trained for one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from jaxmethods.config import RunConfig, TrainingRunConfig

Level = Literal["quick", "standard", "full"]


class ReportRun(RunConfig):
    """Diagnostics of a language model on a text."""

    method: Literal["interpret"]
    model: Path
    """A Hugging Face model folder."""
    data: Path
    """A text, UTF-8; the model's loss is taken on it."""
    held_out: Path | None = None
    """Another text, for the gap; None: the last half of `data`."""
    tokenizer: Literal["own", "bytes"] = "own"
    """The model's `tokenizer.json`, or UTF-8 bytes."""
    tokens: Annotated[int, Field(ge=2)] = 64
    """Tokens of a sequence."""
    sequences: PositiveInt = 32
    """Sequences of each text, from its beginning; fewer where it is short."""
    batch: PositiveInt = 8
    """Sequences that are in memory together."""
    level: Level = "quick"
    """How many probes and steps: see `interpret.report.LEVELS`."""


class DigitsRun(TrainingRunConfig):
    """A network learns digits, watched, and is reported on."""

    method: Literal["interpret_digits"]
    hidden: tuple[PositiveInt, ...] = (32,)
    """Widths of the hidden layers."""
    steps: PositiveInt = 400
    rate: PositiveFloat = 0.2
    """Rate of gradient descent."""
    batch: Annotated[int, Field(ge=2)] = 128
    """Images of a step."""
    monitor_every: PositiveInt = 20
    """Steps between two rows of the monitor."""
    level: Level = "quick"
    """How many probes and steps: see `interpret.report.LEVELS`."""
