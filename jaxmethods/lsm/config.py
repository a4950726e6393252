"""Configs of a speech-text model and its runs."""

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

from jaxmethods.config import Config, Fraction, OnResume, RunConfig, Seed, TrainingRunConfig
from jaxmethods.lsm.windows import SECONDS, WindowPolicy
from jaxmethods.models.qformer import QFormerConfig


class ConnectorConfig(Config):
    """How encoder frames become speech tokens."""

    qformer: QFormerConfig = QFormerConfig()
    policy: WindowPolicy = "per_clip"
    """`reference` as published, where windows follow the longest clip of the batch; `per_clip` and
    `fixed` don't depend on the batch."""
    seconds: PositiveFloat = SECONDS
    """s of the rule round(T s / 30)."""
    window: PositiveInt | None = None
    """Frames of a window of `fixed`; null: the rule's at 30 s."""
    mask_padding: bool | None = None
    """Whether windows over a clip's padding are hidden; null: but for `reference`."""
    norm_eps: Annotated[float, Field(gt=0)] = 1e-5

    @property
    def masks_padding(self) -> bool:
        """What `mask_padding` comes to."""
        return self.policy != "reference" if self.mask_padding is None else self.mask_padding


class TuneConfig(Config):
    """How connector and language model are tuned."""

    steps: Annotated[PositiveInt, OnResume.GROW] = 600
    batch: PositiveInt = 16
    """Rows of a step."""
    micro_batches: PositiveInt = 1
    """Parts in which a batch is run, one after the other; a divisor of `batch`."""
    together: PositiveInt = 1
    """Rows that are put behind each other in one, none of which sees another (packing), so that the
    language model spends no time on padding; a divisor of a part's rows."""
    room: PositiveInt | None = None
    """Tokens of such a row: prompts, speech and answers. What there is no room for is not learned
    from, and counted in the metric `lost`."""
    tokens: PositiveInt | None = None
    """Tokens that a step learns from, where its rows have as many: those behind are left out.
    Students with equal numbers here learn from equal numbers of tokens, however long their answers
    are; null: all tokens of the rows."""
    loss_average: Literal["tokens", "micro"] = "tokens"
    """Mean over the tokens of the step, or of the means of micro-batches, as published."""
    trains: Literal["all", "lora", "connector"] = "all"
    """Beside the connector: the whole language model, additions to it, or nothing."""
    lora_rank: PositiveInt = 4
    lora_alpha: PositiveFloat = 32.0
    lora_targets: tuple[str, ...] = ("query", "value")
    lora_scale: NonNegativeFloat = 1.0
    """Additions are multiplied by it when a student is judged; less than 1 undoes a part of the
    tuning."""
    learning_rate: PositiveFloat = 3e-3
    """The peak, as large as that with which the small language model learns: with a third of it
    some of what it knew about other instructions outlives a tuning on transcriptions alone."""
    warmup: NonNegativeInt = 100
    warmup_kind: Literal["log", "linear"] = "log"
    weight_decay: NonNegativeFloat = 0.05
    clip: PositiveFloat = 1.0
    """Largest global norm of a gradient."""
    remat: bool = False
    """Compute layers of the language model again in the backward pass."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.batch % self.micro_batches:
            raise ValueError(
                f"micro_batches: expected a divisor of batch ({self.batch}), "
                f"got {self.micro_batches}"
            )
        rows = self.batch // self.micro_batches
        if rows % self.together:
            raise ValueError(
                f"together: expected a divisor of a part's {rows} rows, got {self.together}"
            )
        if self.together > 1 and self.room is None:
            raise ValueError("room: expected a number with together above 1, got none")
        return self


# Runs


class SpokenConfig(Config):
    """The speech that is synthesized."""

    train: PositiveInt = 720
    """Clips that are learned from."""
    judged: PositiveInt = 96
    """Clips of the same voices that say other sentences, and as many of unseen voices."""
    held_back: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the sentences that no clip of training says."""
    noisy: Fraction = 0.6
    """Share of clips with noise in the background, at 30, 20 or 12 dB."""
    seconds: PositiveFloat = 3.2
    """Length of the encoder's window."""
    seed: Seed = 0


class ListenerConfig(Config):
    """The small encoder, which learns sounds and is frozen then."""

    n_mels: PositiveInt = 40
    width: PositiveInt = 64
    layers: PositiveInt = 2
    heads: PositiveInt = 4
    mlp_width: PositiveInt = 256
    steps: Annotated[PositiveInt, OnResume.GROW] = 500
    batch: PositiveInt = 12
    learning_rate: PositiveFloat = 3e-3


class WriterConfig(Config):
    """The small language model, which learns the world's text tasks."""

    width: PositiveInt = 64
    layers: PositiveInt = 2
    heads: PositiveInt = 4
    mlp_width: PositiveInt = 192
    steps: Annotated[PositiveInt, OnResume.GROW] = 500
    batch: PositiveInt = 48
    learning_rate: PositiveFloat = 3e-3


class MixtureConfig(Config):
    """Kinds of instructions and their weights; 0: none of it."""

    transcription: NonNegativeFloat = 0.0
    repetition: NonNegativeFloat = 0.0
    intent: NonNegativeFloat = 0.0
    keyword: NonNegativeFloat = 0.0
    sentiment: NonNegativeFloat = 0.0


SELF_POWERED = MixtureConfig(repetition=1, intent=1, keyword=1, sentiment=1)


class StudentConfig(Config):
    """A speech-text model: what it is tuned on."""

    title: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")] = "self_powered"
    generated: MixtureConfig = SELF_POWERED
    """Rows whose answers the language model writes itself, from the transcript; {}: none."""
    transcripts: NonNegativeFloat = 0.0
    """Weight of rows that ask for a transcription and are answered by the transcript."""
    tune: TuneConfig = TuneConfig()


class SmallQFormerConfig(QFormerConfig):
    """The Q-Former of the small world."""

    width: PositiveInt = 64
    heads: PositiveInt = 4
    mlp_width: PositiveInt = 256
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    deviation: PositiveFloat | None = None


class SmallConnectorConfig(ConnectorConfig):
    """The connector of the small world: windows of 60 ms."""

    qformer: SmallQFormerConfig = SmallQFormerConfig()  # pyright: ignore[reportIncompatibleVariableOverride]
    policy: WindowPolicy = "fixed"
    window: PositiveInt | None = 3


class SpeechTextRun(TrainingRunConfig):
    """Speech-text models on a synthesized world, and how far speech anchors them."""

    method: Literal["lsm"]
    speech: SpokenConfig = SpokenConfig()
    listener: ListenerConfig = ListenerConfig()
    writer: WriterConfig = WriterConfig()
    connector: SmallConnectorConfig = SmallConnectorConfig()
    students: tuple[StudentConfig, ...] = (
        StudentConfig(title="vanilla", transcripts=1.0, generated=MixtureConfig()),
        StudentConfig(),
    )
    lora_scales: tuple[NonNegativeFloat, ...] = ()
    """Strengths of additions at which students that train them are judged besides `lora_scale`:
    copying against them is a figure."""
    new_tokens: PositiveInt = 16
    """Tokens of an answer, at most."""
    compat_filter: bool = False
    """Keep what the published filter keeps."""
    shortest: PositiveInt = 1
    """Fewest ids of an answer that is learned from, its end included; 6 in the published code."""
    listened: NonNegativeInt = 6
    """Clips that the report plays."""

    @model_validator(mode="after")
    def _titles_differ(self) -> Self:
        titles = [student.title for student in self.students]
        if len(set(titles)) < len(titles) or not titles:
            raise ValueError(f"students: expected unique titles, got {titles}")
        return self


class TranscribeRun(RunConfig):
    """Recordings written down by a Whisper."""

    method: Literal["transcribe"]
    model: Path
    """A Hugging Face folder of a Whisper, with its tokenizer."""
    audio: tuple[str, ...] = ()
    """Files, or segments path:start:frames."""
    manifest: Path | None = None
    """JSON Lines with `audio` and maybe `text`, what is said; relative to its folder."""
    language: str = "en"
    new_tokens: PositiveInt = 224
    """Tokens of 30 s, at most."""
    beams: PositiveInt = 1
    """Transcripts of a piece that are followed at once; 1: the greedy one."""
    batch: PositiveInt = 1
    """Clips that are transcribed at once."""
    skip_unreadable: bool = False
    """Count recordings that can't be heard and go on, in place of an error."""

    @model_validator(mode="before")
    @classmethod
    def _one_recording_is_a_list(cls, values: object) -> object:
        if isinstance(values, dict) and isinstance(values.get("audio"), str):
            return {**values, "audio": (values["audio"],)}
        return values

    @model_validator(mode="after")
    def _something_is_heard(self) -> Self:
        if not self.audio and self.manifest is None:
            raise ValueError("audio: expected files, or a manifest, got neither")
        return self


class AnswererConfig(Config):
    """A connector and a small language model that learn from nothing to answer with a label."""

    connector: SmallConnectorConfig = SmallConnectorConfig()
    width: PositiveInt = 64
    layers: PositiveInt = 2
    heads: PositiveInt = 4
    mlp_width: PositiveInt = 192
    tune: TuneConfig = TuneConfig(steps=400, batch=32, learning_rate=1e-3)
    """`trains` is all, since nothing was learned before."""


class ProbeRun(TrainingRunConfig):
    """What the frozen encoder of a Whisper knows about recordings."""

    method: Literal["speech_probe"]
    model: Path
    """A Hugging Face folder of a Whisper; its decoder is not read."""
    train: Path
    """JSON Lines with `audio` and the label's field; files are relative to its folder."""
    test: Path
    """The same of clips that are judged."""
    label: str = "label"
    """The field that is to be known."""
    group: str | None = None
    """A field such as speaker: each of its values is left out of training once and judged then."""
    penalties: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (1e-3, 1e-2, 1e-1, 1.0)
    """Weights of the penalty; the best in cross-validation of the training clips is taken."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Folds of the cross-validation, where there are no groups."""
    batch: PositiveInt = 2
    """Clips that are heard at once."""
    skip_unreadable: bool = False
    """Count clips that can't be heard and go on, in place of an error."""
    answerer: AnswererConfig | None = None
    """Train a small speech-text model to answer as well; null: probes alone."""
