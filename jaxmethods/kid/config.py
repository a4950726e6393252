"""Configs of a distillation and of its runs; the paper's defaults, or ours where it is silent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from jaxmethods.config import Config, Fraction, Momentum, OnResume, Seed, TrainingRunConfig, merge
from jaxmethods.kid.objectives import OBJECTIVES, ObjectiveName
from jaxmethods.language.divergences import Normalizer

DivergenceName = Literal[
    "none",
    "forward_kl",
    "reverse_kl",
    "jsd",
    "total_variation",
    "skew_forward_kl",
    "skew_reverse_kl",
    "adaptive_kl",
    "decoupled",
    "atkd",
    "osd_mix",
]
Strategy = Literal["random", "spans", "uniform", "hard", "easy", "bernoulli"]
MaskToken = Literal["id", "random", "previous", "hide"]


class ImperfectConfig(Config):
    """How gold responses are rewritten with the student's own predictions."""

    rewrite: Literal["rewrite", "masking_only", "vanilla"] = "rewrite"
    """`rewrite` fills the masked tokens with predictions; the ablations leave the mask token there,
    or change nothing: plain distillation."""
    alpha: Fraction = 0.2
    """Share of the response's tokens that is masked, its end token apart; at least one token."""
    strategy: Strategy = "random"
    """Which: random ones, random runs of `span` tokens, evenly spaced ones, those the student is
    least (`hard`) or most (`easy`) sure of, or each with probability alpha (`bernoulli`)."""
    span: PositiveInt = 3
    """Tokens of a run, of `spans`: behind a mask the student guesses worse."""
    mask_token: MaskToken = "id"
    """What stands in their place: `mask_token_id`, a random token, the token before, or nothing
    that could be seen (`hide`)."""
    mask_token_id: NonNegativeInt = 1
    """The paper's is the first token, "<s>"."""
    fill: Literal["greedy", "sample"] = "greedy"
    """A student that knows the data by heart fills in the gold token, and the method is plain
    distillation: then sample."""
    fill_temperature: PositiveFloat = 1.0


class DivergenceConfig(Config):
    """What the student is compared with the teacher by; see `language.divergences`."""

    name: DivergenceName = "reverse_kl"
    """`none`: the likelihood alone, without a teacher."""
    temperature: PositiveFloat = 1.0
    beta: Fraction = 0.5
    """Weight of the teacher in the mixture of `jsd`."""
    skew: Fraction = 0.1
    head_mass: Fraction = 0.5
    """mu of `adaptive_kl`."""
    target_weight: NonNegativeFloat = 0.2
    """alpha of `decoupled` and `atkd`."""
    other_weight: NonNegativeFloat = 1.0
    """beta of `decoupled`."""


class KIDConfig(Config):
    """The loss of a step: divergence + mle_weight * likelihood of the gold tokens."""

    imperfect: ImperfectConfig = ImperfectConfig()
    divergence: DivergenceConfig = DivergenceConfig()
    divergence_weight: NonNegativeFloat = 1.0
    mle_weight: NonNegativeFloat = 1.0
    mle_input: Literal["imperfect", "clean"] = "imperfect"
    """Which tokens the likelihood of the gold ones is conditioned on; `clean` costs a second pass
    of the student."""
    normalizer: Normalizer = "tokens"
    """Mean over the batch's tokens, or over rows of their means."""
    share_prefix: bool = True
    """Run the prompt once for the clean, the masked and the imperfect response, where there are
    several."""
    logit_chunk: PositiveInt = 512
    """Tokens whose logits are there at one time; in a run, on each device that the batch is split
    over."""
    micro_batches: PositiveInt = 1
    """Parts in which a batch is run, one after the other; the loss is that of the batch."""
    remat: bool = False
    """Recompute layers in the backward pass."""
    vocabulary: Annotated[int, Field(gt=0)] | None = None
    """Leading logits that are compared, where the models' paddings differ."""


class ReplayConfig(Config):
    """DistiLLM's adaptive off-policy responses: generated ones are kept and seen again."""

    capacity: PositiveInt = 1000
    """Responses that are kept, the newest."""
    validate_every: PositiveInt = 100
    """Steps between two looks at the loss of held-back examples."""
    validation_rows: PositiveInt = 32
    margin: NonNegativeFloat = 0.1
    """The loss must have risen by this for the student's responses to be seen more often."""
    increase: Fraction = 0.1
    """By how much more often then."""


class SourceConfig(Config):
    """Whose responses a step learns from; gold ones are what is left."""

    student: Fraction = 0.0
    """Share of the batches (or rows) that the student generates, in that step."""
    teacher: Fraction = 0.0
    """Share that the teacher has generated, before the first step."""
    unit: Literal["batch", "row"] = "batch"
    """Whether whole batches are drawn with these shares, or every batch has such rows."""
    temperature: NonNegativeFloat = 1.0
    """The student's responses are drawn with it; 0: the most likely ones."""
    replay: ReplayConfig | None = None
    """In place of `student`: how often follows from the loss of held-back examples."""

    @model_validator(mode="after")
    def _shares_fit(self) -> SourceConfig:
        if self.student + self.teacher > 1 + 1e-9:
            raise ValueError(
                "student, teacher: expected a sum of at most 1, "
                f"got {self.student + self.teacher:g}"
            )
        if self.replay is not None and self.student + self.teacher > 0:
            raise ValueError("replay: expected null with shares of student or teacher")
        return self


# Runs


class WorldConfig(Config):
    """The generated world that is there where no data is given."""

    databases: Annotated[int, Field(ge=1, le=12)] = 12
    """Databases that are trained on; three others are unseen."""
    shapes: Annotated[int, Field(ge=1, le=30)] = 30
    """Shapes of queries."""
    train: PositiveInt = 8000
    same: PositiveInt = 1000
    """Other questions of the same distribution."""
    combine: PositiveInt = 1000
    """Questions whose shape and columns never occur together in `train`."""
    unseen: PositiveInt = 500
    """Questions on the three unseen databases."""
    seed: Seed = 0


class DataConfig(Config):
    """Questions and databases: a folder, or the generated world."""

    path: Path | None = None
    """A folder in the layout of Spider or BIRD; null: the world."""
    layout: Literal["spider", "bird"] = "spider"
    train: str = "train"
    """The split that is trained on."""
    judged: tuple[str, ...] = ()
    """The splits that students are judged on; none: `dev`, or the world's three. The one that is
    trained on, where it is named, is judged on what is trained on."""
    hold_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training questions that is judged in place of trained on, as split `held_out`;
    their queries may occur in training with another question."""
    world: WorldConfig = WorldConfig()
    prompt: Literal["compact", "codes"] = "compact"
    """What a model is shown of a database: names of tables and columns, or CodeS' format with
    types, keys and values that the question mentions."""
    evidence: bool = True
    """Ask with what BIRD calls evidence."""
    vocabulary: Annotated[int, Field(ge=259, le=65536)] = 768
    """Tokens of the byte pairs that are learned where no model brings a tokenizer."""
    max_input: PositiveInt = 1024
    """Tokens of a prompt; longer ones lose their beginning."""
    max_output: PositiveInt = 128
    """Tokens of a query, its end included; longer ones lose their end."""


class LoraConfig(Config):
    """Low-rank additions that are trained in place of the weights."""

    rank: PositiveInt = 64
    alpha: PositiveFloat = 32.0
    """Additions are scaled by alpha / rank."""
    targets: tuple[str, ...] = ("query", "value")
    """Among query, key, value, out, up, gate, down."""
    save: Literal["merged", "adapter"] = "merged"
    """Whether the student's folder holds whole weights, or the additions alone (PEFT)."""


class ModelConfig(Config):
    """A decoder: a folder, or sizes of a new one."""

    path: Path | None = None
    """A Hugging Face folder; it brings its tokenizer. Null: a new Llama of these sizes."""
    layers: PositiveInt = 4
    width: PositiveInt = 128
    mlp_width: PositiveInt = 256
    heads: PositiveInt = 4
    kv_heads: PositiveInt = 4
    tied: bool = True
    """The embedding is also the head."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; parameters that are trained, and losses, are float32."""
    remat: bool = False
    """Recompute layers in the backward pass."""


class FitConfig(Config):
    """AdamW with a linear warm-up and a cosine to zero."""

    steps: Annotated[PositiveInt, OnResume.GROW] = 4000
    batch: PositiveInt = 16
    questions: PositiveInt | None = None
    """Only this many of the training questions, the first; null: all. A teacher that has seen more
    than its students is what a pretrained one is."""
    learning_rate: PositiveFloat = 2e-4
    warmup: Fraction = 0.03
    """Share of the steps."""
    weight_decay: NonNegativeFloat = 0.0
    beta2: Momentum = 0.999
    """Decay of squared gradients; short trainings of small models want less."""
    clip: PositiveFloat = 1.0
    """Largest norm of a gradient."""
    micro_batches: PositiveInt = 1
    """Parts in which a batch is run, one after the other; the update is that of the batch."""

    @model_validator(mode="after")
    def _batch_fits(self) -> FitConfig:
        if self.questions is not None and self.questions < self.batch:
            raise ValueError(
                f"questions: expected at least the {self.batch} of a batch, got {self.questions}"
            )
        return self


class TeacherFitConfig(FitConfig):
    """How the teacher learns gold queries."""

    steps: Annotated[NonNegativeInt, OnResume.GROW] = 4000
    """0: a teacher that is read stays as it is."""


class TeacherConfig(ModelConfig):
    """The teacher: trained on gold queries first, or read."""

    fit: TeacherFitConfig = TeacherFitConfig()
    lora: LoraConfig | None = None
    cache: Literal["none", "float32", "bfloat16"] = "none"
    """Run it once over the training data and keep, on disk, the states that its logits are made of:
    for students that learn from gold responses, or from the teacher's."""
    temperature: NonNegativeFloat = 0.0
    """Temperature of the responses that it generates beforehand; 0: the most likely ones."""


class StudentConfig(Config):
    """One student: its objective, with whatever is changed in it."""

    objective: ObjectiveName = "kid"
    """What the defaults of all other fields are those of."""
    name: str = ""
    """Name of its stage, files and rows; none: the objective's."""
    loss: KIDConfig = KIDConfig()
    source: SourceConfig = SourceConfig()
    steps: Annotated[PositiveInt | None, OnResume.GROW] = None
    """Null: as many as all students."""
    begin: str = ""
    """Name of a student before it whose weights it begins with; none: those of all others."""

    @model_validator(mode="before")
    @classmethod
    def _with_objective(cls, values: Any) -> Any:
        """A name alone is an objective; an objective says what isn't given."""
        values = {"objective": values} if isinstance(values, str) else values
        if not isinstance(values, Mapping):
            return values
        named = values.get("objective", cls.model_fields["objective"].default)
        return merge(OBJECTIVES.get(named, {}), values) if isinstance(named, str) else values

    @property
    def title(self) -> str:
        """What it is called."""
        return self.name or self.objective


class EvaluationConfig(Config):
    """How models are judged."""

    questions: PositiveInt | None = None
    """Only this many of a split's first questions; null: all."""
    rows: PositiveInt = 256
    """Questions that are answered at one time."""
    curve: NonNegativeInt = 0
    """Questions of the first judged split that students answer while they train."""
    exposure: NonNegativeInt = 512
    """Prompts of the first judged split on which accumulated errors are measured; 0: they aren't.
    With 64 of them, errors are larger than differences of students."""
    exposure_samples: PositiveInt = 1
    """Responses of the student, and of the teacher, to each of them."""
    seconds: PositiveFloat = 30.0
    """Longest time of a query."""
    beams: PositiveInt = 1
    """Beams of an answer, of which the first that SQLite can plan is taken; 1: greedy decoding."""
    fuzz: NonNegativeInt = 0
    """Changed copies of every database on which an answer must be right as well (TS-fuzz), for the
    first judged split; 0: none."""
    vote: NonNegativeInt = 0
    """Samples of every answer to the first judged split, whose results elect one; 0: none."""
    vote_temperature: PositiveFloat = 0.8
    shown: NonNegativeInt = 10
    """Answers that the report shows beside gold ones."""


class DistillRun(TrainingRunConfig):
    """A teacher, and students that learn from it in different ways, judged by execution."""

    method: Literal["kid"]
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    student: ModelConfig = ModelConfig(layers=2, width=64, mlp_width=128)
    """Every student begins as this model, with the same weights."""
    lora: LoraConfig | None = None
    """Train additions to the student's weights."""
    fit: FitConfig = FitConfig()
    """How students are trained."""
    students: Annotated[tuple[StudentConfig, ...], Field(min_length=1)] = (
        StudentConfig(objective="sft"),
        StudentConfig(objective="rkd"),
        StudentConfig(objective="kid"),
    )
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _fields_fit(self) -> DistillRun:
        titles = [student.title for student in self.students]
        taken = {"teacher", "world", "teacher_responses", "teacher_states", "judged"}
        for title in titles:
            if titles.count(title) > 1 or title in taken or not title.isidentifier():
                raise ValueError(
                    f"students: expected names that differ, of letters and digits, got {title!r}"
                )
        for place, student in enumerate(self.students):
            if student.begin and student.begin not in titles[:place]:
                raise ValueError(
                    f"students: begin: expected a student before {student.title!r}, "
                    f"got {student.begin!r}"
                )
        if self.teacher.path is None and self.teacher.fit.steps == 0:
            raise ValueError("teacher.fit.steps: expected at least 1 without a path, got 0")
        return self
