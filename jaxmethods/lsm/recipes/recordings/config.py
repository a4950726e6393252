"""Configs of speech-text models on a user's own recordings, Whisper and language model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from jaxmethods.config import Config, OnResume, TrainingRunConfig
from jaxmethods.lsm.config import ConnectorConfig, MixtureConfig, StudentConfig, TuneConfig

RESERVED = ("cascade", "language_model")
"""Names of what is judged beside students."""
Dtype = Literal["float32", "bfloat16", "float16"]


class RecordingsConfig(Config):
    """The recordings: JSON Lines with `audio`, a file or path:start:frames in the file's own rate,
    and `text`, what is said; right answers under the names of kinds of instructions, `intent`,
    `keyword`, `sentiment`, `translation`, where they are known."""

    train: Path
    """What is learned from; paths in it are relative to its folder."""
    judged: Path | None = None
    """What students are judged on; null: the last of `train`, see `hold_out`."""
    hold_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of `train`, its end, that is judged in place of learned from; without `judged`."""
    longest: PositiveFloat = 30.0
    """Seconds of a recording, at most. More than 30 are heard in pieces of 30 s, whose frames are
    put behind each other."""
    skip_unusable: bool = False
    """Count rows that can't be used and go on, in place of an error: without audio or text, audio
    that can't be read, is not finite or too long, a segment past the end."""
    limit: PositiveInt | None = None
    """Only this many rows of each file, the first; null: all."""


class WhisperConfig(Config):
    """The encoder, which is frozen: a folder of any Whisper."""

    path: Path
    """A Hugging Face folder."""
    dtype: Dtype = "float32"
    """Type of its computation; frames are kept in float16."""
    batch: PositiveInt = 4
    """Pieces of 30 s that are heard at once."""
    language: str = "en"
    """What is spoken, for the transcripts of the cascade."""


class LanguageConfig(Config):
    """The language model: a folder of any decoder that `jaxmethods.models.decoder` reads."""

    path: Path
    """A Hugging Face folder with its tokenizer."""
    dtype: Dtype = "float32"
    """Type of weights that are frozen; those that train are float32."""
    template: Literal["vicuna", "llama3", "plain"] = "vicuna"
    """How prompts are written."""


class AugmentConfig(Config):
    """How the language model writes the training set."""

    wordings: Path | None = None
    """JSON: kind -> wordings of your own, in place of ours; kinds that it leaves out keep ours."""
    target_language: str = "German"
    """The language that translations are asked in."""
    batch: PositiveInt = 32
    """Slots: answers that are written at once. One that has ended leaves its slot to the next
    prompt."""
    new_tokens: PositiveInt = 225
    """Tokens of an answer, at most."""
    longest_prompt: PositiveInt = 150
    """A prompt of this many tokens or more is dropped, and counted."""
    compat_filter: bool = False
    """Keep what the published filter keeps."""
    punctuated: bool = True
    """Keep answers that end in punctuation, as published; false: all that were finished."""
    shortest: PositiveInt = 1
    """Fewest ids of an answer that is learned from, its end included; 6 in the published code."""
    longest: PositiveInt = 2047
    """Most ids of an answer that is learned from."""


class KindsConfig(MixtureConfig):
    """Kinds of instructions and their weights, all of them; 0: none of it."""

    continuation: NonNegativeFloat = 0.0
    translation: NonNegativeFloat = 0.0


ALL_KINDS = KindsConfig(
    continuation=1, repetition=1, intent=1, keyword=1, sentiment=1, translation=1
)


class PretrainedTuneConfig(TuneConfig):
    """The published settings of fine-tuning, for models of billions."""

    batch: PositiveInt = 32
    learning_rate: PositiveFloat = 2e-5
    steps: Annotated[PositiveInt, OnResume.GROW] = 1000


class RecordedStudentConfig(StudentConfig):
    """A speech-text model: what it is tuned on."""

    generated: KindsConfig = ALL_KINDS  # pyright: ignore[reportIncompatibleVariableOverride]
    tune: PretrainedTuneConfig = PretrainedTuneConfig()  # pyright: ignore[reportIncompatibleVariableOverride]


Kind = Literal[
    "transcription", "repetition", "intent", "keyword", "sentiment", "continuation", "translation"
]


class JudgingConfig(Config):
    """What students are asked, and what stands beside them."""

    kinds: Annotated[tuple[Kind, ...], Field(min_length=2)] = (
        "transcription",
        "repetition",
        "intent",
        "keyword",
        "sentiment",
    )
    """Kinds of instructions."""
    cascade: bool = True
    """Let Whisper write down what is said and the language model answer about that."""
    beams: PositiveInt = 1
    """Beams with which Whisper writes the cascade's transcripts."""
    batch: PositiveInt = 8
    """Rows that are answered at once."""
    new_tokens: PositiveInt = 128
    """Tokens of an answer, at most."""
    attributed: NonNegativeInt = 16
    """Rows whose answers are traced back to segments of the input."""


class RecordingsRun(TrainingRunConfig):
    """Speech-text models of your own recordings, Whisper and language model."""

    method: Literal["lsm_recordings"]
    data: RecordingsConfig
    speech: WhisperConfig
    language: LanguageConfig
    connector: ConnectorConfig = ConnectorConfig()
    augment: AugmentConfig = AugmentConfig()
    students: tuple[RecordedStudentConfig, ...] = (
        RecordedStudentConfig(title="vanilla", transcripts=1.0, generated=KindsConfig()),
        RecordedStudentConfig(),
    )
    lora_scales: tuple[NonNegativeFloat, ...] = ()
    """Strengths of additions at which students that train them are judged besides `lora_scale`:
    copying against them is a figure."""
    judging: JudgingConfig = JudgingConfig()

    @model_validator(mode="after")
    def _titles_differ(self) -> Self:
        titles = [student.title for student in self.students]
        if len(set(titles)) < len(titles) or not titles:
            raise ValueError(f"students: expected unique titles, got {titles}")
        for title in titles:
            if title in RESERVED:
                raise ValueError(f"students: expected another title than {title!r}, which is taken")
        return self
