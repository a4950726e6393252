"""Configs of the diagnostics: a report on a model folder, and a network that is trained for one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from jaxmethods.config import OpenFraction, RunConfig, TrainingRunConfig

Level = Literal["quick", "standard", "full"]


class ReportRun(RunConfig):
    """Diagnostics of a model folder, or of what a finished run has trained."""

    method: Literal["interpret"]
    model: Path
    """A Hugging Face folder of a language model, or the folder of a finished run of any method of
    this library that trains something."""
    data: Path | None = None
    """For a model folder, a text, UTF-8, that the model's loss is taken on. For a run, an NPZ file
    with arrays `inputs` (`inputs.NAME` where there are several) and `targets`, as the error says
    that names what is missing; None: the run's own data."""
    held_out: Path | None = None
    """Another such file, for the gap; None: the last half of `data`."""
    of_seed: Annotated[int, Field(ge=0)] | None = None
    """Which of a run's seeds; None: its first."""
    tokenizer: Literal["own", "bytes"] = "own"
    """The model's `tokenizer.json`, or UTF-8 bytes."""
    tokens: Annotated[int, Field(ge=2)] = 64
    """Tokens of a sequence of a text."""
    examples: PositiveInt | None = None
    """Sequences of each text (None: 32), or examples of each set of a run (None: 256), from its
    beginning; fewer where there are fewer."""
    batch: PositiveInt | None = None
    """Examples that are in memory together; None: 8 sequences, or all examples of a run."""
    level: Level = "quick"
    """How many probes and steps: see `interpret.measures.LEVELS`."""


class DigitsRun(TrainingRunConfig):
    """A network learns digits and is reported on."""

    method: Literal["interpret_digits"]
    hidden: tuple[PositiveInt, ...] = (32,)
    """Widths of the hidden layers."""
    steps: PositiveInt = 400
    rate: PositiveFloat = 0.2
    """Rate of gradient descent."""
    batch: Annotated[int, Field(ge=2)] = 128
    """Images of a step."""
    level: Level = "quick"
    """How many probes and steps: see `interpret.measures.LEVELS`."""


class GrokkingRun(TrainingRunConfig):
    """A network learns to add modulo a prime, and which measure moves first is drawn."""

    method: Literal["interpret_grokking"]
    prime: Annotated[int, Field(ge=5)] = 53
    """How many numbers there are."""
    share: OpenFraction = 0.4
    """Share of all pairs that it is trained on."""
    width: Annotated[int, Field(ge=4)] = 96
    """Units of the hidden layer; embeddings have half as many."""
    steps: PositiveInt = 2000
    rate: PositiveFloat = 0.01
    """Learning rate of AdamW."""
    weight_decay: NonNegativeFloat = 1.0
