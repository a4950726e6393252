"""Configs of norm voting: how heads are chosen, questions, and the small world it is shown on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from jaxmethods.config import Config, Fraction, MeshConfig, OnResume, RunConfig, TrainingRunConfig


class SelectionConfig(Config):
    """How the voting heads are chosen."""

    samples: PositiveInt = 30
    """Labeled questions."""
    q: Fraction = 0.85
    """Quantile that a head's count must exceed."""
    rule: Literal["code", "paper"] = "code"
    """See `heads.select_heads`."""
    voters: Literal["both", "max", "min"] = "both"
    """Which directions may vote."""


class NormConfig(Config):
    """Which norms vote."""

    order: Literal["1", "2", "inf"] = "2"
    tokens: Literal["last", "mean"] = "last"
    """At a candidate's last token, or averaged over its tokens."""
    layers: tuple[int, int] | None = None
    """Only layers of this range (from, to and without); None: all."""
    rounding: Literal["none", "bfloat16", "float16"] = "none"
    """Round norms to what the published code keeps them in; makes ties frequent."""


class PromptConfig(Config):
    """How a question becomes text; {fields} are replaced, all else stands as it is."""

    template: str = "{instruction}\n{question}"
    """{instruction}, {question}; the format the model was trained with."""
    instruction: str = ""
    question: str = "{question}"
    """{question}, {context}, {target} of the data."""
    choice: str = "{choice}"


class QuestionsRun(RunConfig):
    """Multiple-choice questions answered by the heads of a model."""

    method: Literal["novo"]
    model: Path
    """A Hugging Face model folder."""
    data: Path
    """Questions, JSON Lines or JSON."""
    discovery: Path | None = None
    """Labeled questions that choose the heads; None: drawn from `data`, and not judged."""
    heads: Path | None = None
    """Heads as an earlier evaluation wrote them (heads.json), instead of choosing them."""
    tokenizer: Literal["model", "bytes"] = "model"
    """The model folder's tokenizer.json, or UTF-8 bytes."""
    prompt: PromptConfig = PromptConfig()
    selection: SelectionConfig = SelectionConfig()
    norms: NormConfig = NormConfig()
    mode: Literal["tree", "packed"] = "tree"
    """Run what all questions share once, or with each of them."""
    dtype: Literal["float32", "bfloat16", "stored"] = "float32"
    """The type of parameters and computation."""
    batch_tokens: PositiveInt = 2048
    """Roughly the number of tokens that are run at once."""
    likelihood: bool = True
    """Score candidates by their likelihood too."""
    draws: NonNegativeInt = 200
    """Selections drawn anew, to see how much their questions matter."""
    limit: PositiveInt | None = None
    """Judge only this many of the first questions."""
    mesh: Annotated[MeshConfig, OnResume.CHANGE] = MeshConfig()
    """Questions are split over `data`, the model over `tensor` and `fsdp`."""


class World(Config):
    """Sizes and habits of the world of `misconceptions`."""

    entities: PositiveInt = 48
    relations: PositiveInt = 4
    values: Annotated[int, Field(ge=4)] = 12
    """Values of each relation."""
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
    steps: Annotated[PositiveInt, OnResume.GROW] = 1250
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    """Peak of a one-cycle schedule."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest global norm of a gradient."""


class MisconceptionsRun(TrainingRunConfig):
    """A decoder learns facts and myths."""

    method: Literal["misconceptions"]
    world: World = World()
    learner: LearnerConfig = LearnerConfig()
    selection: SelectionConfig = SelectionConfig()

    @model_validator(mode="after")
    def _facts_suffice(self) -> MisconceptionsRun:
        facts = self.world.entities * self.world.relations
        if self.selection.samples >= facts:
            raise ValueError(
                f"selection.samples: expected fewer than the {facts} facts, "
                f"got {self.selection.samples}"
            )
        return self
