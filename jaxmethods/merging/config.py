"""Configs of merging: of what adapts, of the comparison from images to a table, of checkpoints.

Defaults are the papers'. Which merges of checkpoints there are and which parameters each has is
said by `checkpoints.static_merges`; here are the parameters' types and bounds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from jaxmethods.config import Config, Fraction, OnResume, RunConfig, Seed, TrainingRunConfig
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


# What adapts at test time


class AdaMergingConfig(Config):
    """Test-time adaptation of the coefficients of task arithmetic."""

    layerwise: bool = True
    """One coefficient for every task and tensor, or one for every task."""
    initial: float = 0.3
    clamp: bool = True
    """Use the coefficients clamped to [0, 1]."""
    batch_size: PositiveInt = 16
    """Inputs of each task in a step. (The authors' code sums over two batches of 16.)"""
    learning_rate: PositiveFloat = 1e-3
    entropy_epsilon: float | None = None
    """None: exact entropy; 1e-8: log(p + 1e-8)."""
    diversity: NonNegativeFloat = 0.0
    """Weight of the entropy of the mean prediction, which is made large. Not in the paper (0);
    it keeps a weak start from collapsing to one class, see `adaptation.objective`."""
    stacked: str | None = "/layers/"
    """Leaves whose path has this regular expression in it have a leading layer axis, and every
    layer a coefficient of its own; null: none."""


class WEMoEConfig(Config):
    """Weight-ensembling mixture of experts; `ewemoe()` is the efficient variant."""

    coefficient: float = 0.3
    """lambda: of task arithmetic for the rest of the network, and of the routers' first output."""
    modules: tuple[Literal["mlp", "self_attn"], ...] = ("mlp",)
    """Parts of every block that keep their task vectors and get a router."""
    router_depth: Literal[0, 1, 2] = 2
    """Layers of the router: 0 is a free vector, 1 linear, 2 with a hidden layer."""
    shared_router: bool = False
    """One router for all blocks."""
    layer_encoding: NonNegativeInt = 0
    """Width of the sinusoidal encoding of the block's number that is put before each token; 0:
    none (the usual width is 8)."""
    prune: Fraction | None = None
    """Zero the entries of every task vector up to this quantile of magnitudes."""
    prune_router: Fraction | None = None
    """The same for the routers, after adaptation."""
    routing: Literal["sample", "batch"] = "sample"
    """Coefficients in training: every image its own, or one mean for a task's batch (faster).
    Evaluation is always per image unless asked otherwise."""
    strategy: Literal["auto", "merge", "blocks", "expertwise", "fused"] = "auto"
    """How merged modules are computed, see `merged_modules`."""
    batch_size: PositiveInt = 16
    """Images of each task in a step."""
    learning_rate: PositiveFloat = 1e-4
    schedule: Literal["cosine", "constant"] = "cosine"
    """Decay the learning rate to 0 over `steps`, or keep it."""
    steps: Annotated[PositiveInt, OnResume.GROW] = 1000
    entropy_epsilon: float | None = None
    """None: exact entropy; 1e-8: log(p + 1e-8)."""
    diversity: NonNegativeFloat = 0.0
    """Weight of the entropy of the mean prediction, which is made large. Not in the paper (0);
    it keeps a weak start from collapsing to one class, see `adaptation.objective`."""


def ewemoe(prune: float = 0.9) -> WEMoEConfig:
    """E-WEMoE: pruned task vectors and one router for all blocks, learning rate constant.

    Args:
        prune: share of each task vector that is dropped.

    Returns:
        The config.
    """
    return WEMoEConfig(prune=prune, shared_router=True, schedule="constant")


class SurgeryConfig(Config):
    """Representation Surgery (features only) and SurgeryV2 (also after every block)."""

    deep: bool = False
    """SurgeryV2: correct the residual stream after every block too."""
    rank: PositiveInt = 16
    loss: Literal["l1", "l2"] = "l1"
    batch_size: PositiveInt = 16
    """Images of each task in a step."""
    learning_rate: PositiveFloat = 1e-3
    remat: bool = False
    """SurgeryV2: compute blocks again in the backward pass, which saves memory."""


# The comparison from images to a table: its base and experts, its data, its run


class TrainingConfig(Config):
    """Supervised training, of the base or of the experts."""

    steps: Annotated[PositiveInt, OnResume.GROW] = 500
    batch_size: PositiveInt = 32
    """Images of each task in a step."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """sgd has momentum 0.9 and no weight decay."""
    learning_rate: PositiveFloat = 1e-3
    """After a tenth of the steps, with cosine decay to 0."""
    weight_decay: NonNegativeFloat = 0.05
    clip: PositiveFloat = 1.0
    """Largest global norm of the gradient."""
    shift: NonNegativeInt = 2
    """Images are moved by up to this number of pixels in both directions."""


class PretrainingConfig(TrainingConfig):
    """What the base's tower learns without labels, from two views of each image."""

    temperature: PositiveFloat = 0.2
    """What cosines of views are divided by."""
    crop: Fraction = 0.4
    """Smallest share of an image that a view shows."""
    jitter: Fraction = 0.4
    """Views are multiplied by 1 and moved by 0, give or take up to this."""


class BaseConfig(TrainingConfig):
    """The common base."""

    labeled: Fraction = 0.05
    """Share of every task's training images whose labels the base sees."""
    logit_scale: PositiveFloat | None = None
    """exp(s) in its training; null: the network's. A larger one asks for less distance between
    classes, so that with the network's the base is the less sure the more there is to learn."""


class ExpertsConfig(TrainingConfig):
    """The experts."""

    trained: str = ""
    """Leaves whose path has this regular expression in it are trained; others are the base's."""


class DataConfig(Config):
    """The tasks: files, or made of scikit-learn's digits."""

    path: Path | None = None
    """Folder that holds an npz file `NAME.npz` or a folder of image files `NAME/train/CLASS/*.png`,
    `NAME/test/CLASS/*.png` for each task, see `jaxmethods.data.images`."""
    tasks: tuple[str, ...] | None = None
    """Names of files without `.npz`, folders or `images.DIGIT_TASKS`; null: all there are."""
    image_size: PositiveInt | None = None
    """Height and width: image files are resized (shorter side, bicubic, then the middle), npz
    files must have it. null: as the files are, all of one size."""
    generate: Literal["digits"] | None = None
    """Instead of files: tasks made of digits."""
    seed: Seed = 0
    """Seed of the order of the training images, which decides which are labeled for the base."""

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if (self.path is None) == (self.generate is None):
            raise ValueError("path: expected either a folder or `generate`")
        if self.generate is not None and not self.tasks:
            raise ValueError("tasks: expected some with `generate`, got none")
        if self.generate is not None and self.image_size is not None:
            raise ValueError("image_size: expected null with `generate`")
        return self


class NetworkConfig(Config):
    """The vision transformer; its images are those of the data."""

    width: PositiveInt = 128
    depth: PositiveInt = 4
    heads: PositiveInt = 4
    patch: PositiveInt = 8
    features: PositiveInt = 128
    """P, width of the projected features."""
    logit_scale: Annotated[float, Field(gt=0.0)] = 20.0
    """exp(s), what cosines are multiplied by."""


class StaticConfig(Config):
    """Merges that need nothing but the experts."""

    task_arithmetic: float = 0.3
    ties: float = 0.3
    ties_density: Fraction = 0.2


class AdaMergingRunConfig(AdaMergingConfig):
    """AdaMerging of the table."""

    steps: Annotated[PositiveInt, OnResume.GROW] = 500


class SurgeryRunConfig(SurgeryConfig):
    """Both surgeries of the table: `deep` is set for each."""

    steps: Annotated[PositiveInt, OnResume.GROW] = 1000


class EvaluationConfig(Config):
    """The comparison at the end."""

    batch_size: PositiveInt = 128
    """Test images of each task that are encoded, and in batch routing routed, together."""


class ComparisonRun(TrainingRunConfig):
    """From tasks to a table."""

    method: Literal["merging"]
    data: DataConfig
    network: NetworkConfig = NetworkConfig()
    pretraining: PretrainingConfig | None = None
    """Train the base's tower on all training images without labels first; null: it begins with
    random weights."""
    base: BaseConfig = BaseConfig()
    experts: ExpertsConfig = ExpertsConfig()
    static: StaticConfig = StaticConfig()
    adamerging: AdaMergingRunConfig = AdaMergingRunConfig()
    wemoe: WEMoEConfig = WEMoEConfig()
    ewemoe: WEMoEConfig = WEMoEConfig(prune=0.9, shared_router=True, schedule="constant")
    surgery: SurgeryRunConfig = SurgeryRunConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


# Merges of checkpoints


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
    seed: Seed = 0
    """Seed of masks, where the algorithm draws them."""
    card: bool = True
    """Write README.md: how the result was made, and hashes of the inputs' weights."""

    @classmethod
    def fields_with(cls, values: Mapping[str, Any]) -> Mapping[str, FieldInfo]:
        """Without the parameters that the algorithm doesn't have."""
        merge = STATIC_MERGES.get(str(values.get("algorithm")))
        absent = PARAMETERS - merge.parameters.keys() if merge else set()
        if merge and "coefficient" in absent:
            absent |= {"rules"}
        return {name: field for name, field in cls.model_fields.items() if name not in absent}

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


class MergeRun(MergeConfig, RunConfig):
    """A merge of checkpoints."""

    method: Literal["merge"]
