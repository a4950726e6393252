"""Configs of VQ-CD: of its mathematics, then of a continual run (`Run`).

The defaults are the paper's or those of its code.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from jaxmethods.config import (
    Config,
    Fraction,
    Momentum,
    OpenFraction,
    Seed,
    TrainingRunConfig,
    nearest,
)
from jaxmethods.data.generated import QUALITIES
from jaxmethods.envs.control.episodes import CONTROLLERS
from jaxmethods.models.temporal_unet_config import TemporalNetworkConfig, TemporalSizesConfig
from jaxmethods.offline_rl.config import PlayedEnvironmentConfig
from jaxmethods.offline_rl.metaworld import METAWORLD

AlignmentKind = Literal["vq", "ae", "vae", "fsq", "pad", "none"]
NAME = re.compile("[a-z0-9_]+")
Kind = Literal[
    "vqcd",
    "finetune",
    "multitask",
    "single",
    "single_quarter",
    "cod",
    "cod_rcr",
    "cod_lora",
    "rehearsal",
    "ewc",
    "l2",
    "mas",
    "packnet",
    "generative_replay",
]


# The mathematics


class AlignmentConfig(Config):
    """One module that maps a task's states, or its actions, into the common space."""

    kind: AlignmentKind = "vq"
    """A codebook (`vq`), a plain (`ae`) or variational autoencoder (`vae`), a fixed grid in place
    of a codebook (`fsq`), zeros behind the values (`pad`), or the values themselves (`none`)."""
    latents: PositiveInt = 10
    """n: latent vectors; the paper takes 10 for states and 5 for actions."""
    width: PositiveInt = 2
    """d: size of a latent vector."""
    codes: Annotated[int, Field(ge=2, le=32767)] = 512
    """N: entries of the codebook, shared by the n latents."""
    padded_size: PositiveInt | None = None
    """Size of the common space of `pad` and `none`; null: a run takes that of its widest task."""
    encoder: tuple[PositiveInt, ...] = (256, 256)
    decoder: tuple[PositiveInt, ...] = (256, 256)
    activation: Literal["relu", "leaky_relu"] = "relu"
    beta: NonNegativeFloat = 0.25
    """Weight of the commitment term (the paper's table; its equation has 1)."""
    rho: PositiveFloat = 3.0
    """The codebook's entries, and so the aligned values, stay within [-rho, rho]."""
    clip: Literal["elementwise", "l2"] = "elementwise"
    """What is clipped to rho after an update: every number, or the norm of every entry."""
    update: Literal["gradient", "ema"] = "gradient"
    """How the codebook moves: by its own loss, or as moving averages of what fell to each entry."""
    ema_decay: Momentum = 0.99
    ema_smoothing: NonNegativeFloat = 1e-5
    restart_after: NonNegativeInt = 0
    """Steps after which an unused entry is put where an encoded row is; 0: never."""
    codebook_start: Literal["uniform", "kmeans"] = "uniform"
    """U(-1/N, 1/N), or k-means++ of the first batch's encoded rows."""
    kl_weight: NonNegativeFloat = 1.0
    reduction: Literal["mean", "sum"] = "mean"
    """Losses as means over all elements, or sums over features and means over rows."""
    lr: PositiveFloat = 1e-3
    lr_end: PositiveFloat = 1e-4
    lr_decay: Literal["linear", "cosine"] = "linear"
    steps: PositiveInt = 3000
    """Training steps, which the decay of the learning rate is stretched over."""
    batch: PositiveInt = 256

    @model_validator(mode="after")
    def _fields_fit(self) -> AlignmentConfig:
        if self.kind == "fsq" and self.levels < 2:
            raise ValueError(
                f"codes: expected at least {2**self.width} with fsq and width {self.width} (two "
                f"levels a coordinate), got {self.codes}"
            )
        return self

    @property
    def channels(self) -> int:
        """Size of the common space.

        Raises:
            ValueError: `pad` or `none` without `padded_size`.
        """
        if self.trained:
            return self.latents * self.width
        if self.padded_size is None:
            raise ValueError(f"padded_size: expected a size with {self.kind!r}, got None")
        return self.padded_size

    @property
    def levels(self) -> int:
        """Levels of a coordinate of `fsq`: as many as give no more than `codes` grid points."""
        # The small number keeps 512 ** (1 / 3) from being 7.99.
        return math.floor(self.codes ** (1.0 / self.width) + 1e-9)

    @property
    def trained(self) -> bool:
        """Whether there is anything to train."""
        return self.kind not in ("pad", "none")

    @property
    def discrete(self) -> bool:
        """Whether a row is a few numbers of a table."""
        return self.kind in ("vq", "fsq")


class DiffusionConfig(Config):
    """The diffusion process and how plans are sampled from it."""

    steps: PositiveInt = 200
    """K"""
    sampler: Literal["strided", "ddpm", "dpm-solver++"] = "strided"
    """The code's every `stride`-th step, all K steps, or DPM-Solver++(2M) over the same grid as
    `strided`."""
    stride: PositiveInt = 20
    grid: Literal["first", "last"] = "first"
    """Which step of every stride is taken: the first, as published, so that pure noise counts as
    step K - stride, or the last, so that it counts as step K - 1, as in training."""
    eta: Fraction = 1.0
    """Share of the strided sampler's noise variance; 0 is deterministic."""
    clip: Literal["plan", "data"] = "plan"
    """What the strided sampler clips at every step: the noisy plan, as published, or the data that
    are predicted, as the other samplers do. The former keeps what is wrong with predictions from
    the noisiest steps, the more the smaller the stride, and cuts noise off where bounds are
    narrow."""
    guidance: NonNegativeFloat = 1.2
    """w: 0 ignores the condition, 1 is the conditional prediction alone."""
    drop: Fraction = 0.25
    """Share of training windows whose condition is dropped."""

    @model_validator(mode="after")
    def _stride_divides(self) -> DiffusionConfig:
        if self.steps % self.stride:
            raise ValueError(
                f"stride: expected a divisor of the {self.steps} diffusion steps, got {self.stride}"
            )
        return self


class PlannerChoices(Config):
    """What is chosen of a planner, whatever the tasks are: networks, owners, training."""

    network: TemporalSizesConfig = TemporalSizesConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    condition: Literal["return", "task"] = "return"
    """What the network is given beside the step: a window's return, or its task's number."""
    behavior: Literal["inverse", "diffused", "cloned"] = "inverse"
    """Actions by an inverse dynamics model of two planned states, planned with the states, or by a
    perceptron of the state alone (a baseline without plans)."""
    scope: Literal["kernels", "conv", "none"] = "kernels"
    """Which weights are shared out among the tasks: all kernels, those of convolutions, or none
    (fine-tuning)."""
    shares: tuple[PositiveFloat, ...] = ()
    """Every task's share of these weights; empty: 1/I each. What is left over is free."""
    sees: Literal["own", "earlier"] = "own"
    """Which weights a task runs: its own, or those of earlier tasks as well (PackNet)."""
    rest: Literal["private", "shared", "freeze_after_first"] = "private"
    """Weights that are not shared out: one copy a task, or one for all that every task, or the
    first alone, trains. Only `private` forgets nothing."""
    inverse: Literal["per_task", "shared", "masked"] = "per_task"
    """The inverse model: one a task, one that every task trains (forgets), or shared out."""
    inverse_hidden: PositiveInt = 256
    update: Literal["masked", "dense"] = "masked"
    """Whether the optimizer moves the task's own weights only, or all (the paper's, which assembles
    the tasks' weights afterwards)."""
    reset_optimizer: bool = True
    """Start every task with fresh moments. With `dense` and false, momentum moves the weights of
    earlier tasks."""
    rescale_init: bool = False
    """Scale initial masked weights by 1/sqrt(share)."""
    adapter_rank: NonNegativeInt = 0
    """Rank of every task's own additions to the first, middle and last convolutions (LoRA), which
    tasks after the first train."""
    adapter_lr: PositiveFloat = 1e-4
    penalty: NonNegativeFloat = 0.0
    """Weight of the quadratic penalty around earlier tasks' weights (EWC, L2, MAS)."""
    replay_every: NonNegativeInt = 0
    """Every n-th step trains on an earlier task's kept windows; 0: none does."""
    lr: PositiveFloat = 3e-4
    batch: PositiveInt = 32
    accumulate: PositiveInt = 1
    """Batches whose gradients are averaged in one step."""
    windows: Literal["uniform", "permute"] = "uniform"
    """Draw windows with replacement, or each once an epoch."""
    ema_decay: Momentum = 0.995
    ema_every: PositiveInt = 10
    ema_start: NonNegativeInt = 2000
    """Until this step the average is a copy."""

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if sum(self.shares) > 1 + 1e-9:
            raise ValueError(f"shares: expected a sum of at most 1, got {sum(self.shares):.4g}")
        return self


class PlannerConfig(PlannerChoices):
    """The continual planner: its networks, who owns which weights, and its training."""

    network: TemporalNetworkConfig = TemporalNetworkConfig()
    """Its `channels` are those of an aligned state, plus an action's with `behavior: diffused`."""
    tasks: PositiveInt = 1
    """I"""
    action_channels: PositiveInt = 10
    """A: size of an aligned action."""

    @model_validator(mode="after")
    def _fields_fit(self) -> PlannerConfig:
        if self.shares and len(self.shares) != self.tasks:
            raise ValueError(
                f"shares: expected one for each of the {self.tasks} tasks, got {len(self.shares)}"
            )
        if self.tasks > 127:
            raise ValueError(f"tasks: expected at most 127, got {self.tasks}")
        if self.behavior == "inverse" and self.network.horizon < 2:
            raise ValueError(
                "network.horizon: expected at least 2 with behavior = 'inverse', whose actions "
                f"lead from a state to the next, got {self.network.horizon}"
            )
        if self.behavior == "diffused" and self.network.channels <= self.action_channels:
            raise ValueError(
                f"network.channels: expected more than the {self.action_channels} of an action "
                f"with behavior = 'diffused', got {self.network.channels}"
            )
        return self

    @property
    def state_channels(self) -> int:
        """C: size of an aligned state."""
        return self.network.channels - (self.action_channels if self.behavior == "diffused" else 0)


class PolicyConfig(Config):
    """How actions are found at test time."""

    planner: PlannerConfig = PlannerConfig()
    states: AlignmentConfig = AlignmentConfig()
    actions: AlignmentConfig = AlignmentConfig(latents=5)
    replan_every: PositiveInt = 1
    """Environment steps that one plan serves; the inverse model always sees the current state."""
    warm_start: NonNegativeInt = 0
    """Start from the last plan, moved on and noised so far that this many sampling steps undo it;
    0: from noise."""
    requantize_action: bool = False
    """Replace the predicted aligned action by its codes before it is decoded."""

    @model_validator(mode="after")
    def _fields_fit(self) -> PolicyConfig:
        planner, diffusion = self.planner, self.planner.diffusion
        if self.states.channels != planner.state_channels:
            raise ValueError(
                f"planner.network.channels: expected {self.states.channels} for an aligned state, "
                f"got {planner.state_channels}"
            )
        if self.actions.channels != planner.action_channels:
            raise ValueError(
                f"planner.action_channels: expected {self.actions.channels}, the size of an "
                f"aligned action, got {planner.action_channels}"
            )
        if self.replan_every >= planner.network.horizon:
            raise ValueError(
                f"replan_every: expected below the horizon of {planner.network.horizon}, "
                f"got {self.replan_every}"
            )
        calls = diffusion.steps // (1 if diffusion.sampler == "ddpm" else diffusion.stride)
        if self.warm_start > calls:
            raise ValueError(
                f"warm_start: expected at most the {calls} sampling steps, got {self.warm_start}"
            )
        return self


# A run


class TargetConfig(Config):
    """The return that plans aim at, on the scale of the task's own returns-to-go, 0 to 1."""

    quantile: Fraction | None = 0.9
    """A quantile of the normalized returns of the task's windows."""
    value: Fraction | None = None
    """Instead of a quantile: the same number for whatever data (the paper's is 0.8)."""

    @model_validator(mode="before")
    @classmethod
    def _one(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("value") is not None:
            if values.get("quantile") is not None:
                raise ValueError("value: expected either a quantile or a value, got both")
            return values | {"quantile": None}
        return values


class TaskConfig(Config):
    """One task: data, and where its policy plays."""

    name: str
    """Lower-case letters, digits and underscores; names stages and files."""
    path: Path | None = None
    """npz with D4RL's names, D4RL HDF5 or Minari HDF5. Not opened before the task's turn."""
    generate: str | None = None
    """Instead of a file: a mixture of disturbed controllers plays the environment (mixed, expert,
    medium, medium_expert, random)."""
    episodes: PositiveInt = 20
    """Generated episodes of each behavior of the mixture."""
    data_seed: Seed = 0
    """Seed of the generated data."""
    environment: PlayedEnvironmentConfig | None = None
    """Where episodes are played; None: nowhere, and the task has no score."""
    quality: str = ""
    """A word on the data for tables; generated data have that of `generate`."""
    low: float | None = None
    """The return that scores 0, where it is not known of the environment."""
    high: float | None = None
    """The return that scores 100."""
    target: TargetConfig | None = None
    """The target of this task alone."""

    @field_validator("environment", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fields_fit(self) -> TaskConfig:
        if not NAME.fullmatch(self.name):
            raise ValueError(
                f"name: expected lower-case letters, digits and underscores, got {self.name!r}"
            )
        if (self.path is None) == (self.generate is None):
            raise ValueError("path: expected either a file or `generate`")
        if self.generate is not None:
            if self.generate not in QUALITIES:
                hint = nearest(self.generate, QUALITIES)
                raise ValueError(f"generate: unknown mixture {self.generate!r}{hint}")
            name = "" if self.environment is None else self.environment.name
            if name not in CONTROLLERS and not name.startswith(METAWORLD):
                raise ValueError(
                    "environment: expected one with a scripted controller to generate data "
                    f"({', '.join(CONTROLLERS)}, {METAWORLD}TASK)"
                )
        if (self.low is None) != (self.high is None) or (
            self.low is not None and self.high is not None and self.low >= self.high
        ):
            raise ValueError(
                f"high: expected a return above `low`, got low {self.low} and high {self.high}"
            )
        return self


class SpacesConfig(Config):
    """How states and actions are aligned, and the data they are aligned from prepared."""

    states: AlignmentConfig = AlignmentConfig()
    actions: AlignmentConfig = AlignmentConfig(latents=5)
    together: bool = False
    """Train the modules of all tasks first, side by side in one program. Nothing is shared, so
    results are the same, but all files are opened before the first task."""
    stretch: bool = True
    """Scale the trained codes up until aligned rows have root mean square 1 (or a code is at rho):
    the same modules, but diffusion separates them from noise sooner. Not in the paper, whose codes
    grow by themselves in its 500,000 steps."""
    normalizer: Literal["gaussian", "limits", "none"] = "gaussian"
    discount: Annotated[float, Field(gt=0.0, le=1.0)] = 0.99
    """gamma of the returns-to-go; the predecessor's code sums without (1)."""
    termination_penalty: float = 0.0
    """Added to the last reward of an episode that fails."""
    held_out: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of the episodes that nothing is trained on, to measure on."""


class LearnerConfig(Config):
    """Who learns the sequence; every further field replaces one of `planner`'s."""

    model_config = ConfigDict(extra="allow")

    kind: Kind = "vqcd"
    name: str = ""
    """The name of its stages and rows; the kind's where empty."""

    @model_validator(mode="after")
    def _named(self) -> LearnerConfig:
        if self.name and not NAME.fullmatch(self.name):
            raise ValueError(
                f"name: expected lower-case letters, digits and underscores, got {self.name!r}"
            )
        return self

    @property
    def title(self) -> str:
        """What its stages are named after."""
        return self.name or self.kind


class PlayConfig(Config):
    """How episodes are played."""

    episodes: PositiveInt = 10
    replan_every: PositiveInt = 1
    """Environment steps that one plan serves."""
    warm_start: NonNegativeInt = 0
    """Sampling steps that renew the last plan; 0: plans begin from noise."""
    requantize_action: bool = False
    steps: PositiveInt | None = None
    """Cap on the steps of an episode, below the environment's own. Scores are on a scale of such
    episodes where a scripted controller can say it, else returns."""
    play_unchanged: bool = False
    """Play again where a task's weights are, bit for bit, those that it was last played with; else
    its returns are taken over."""


class Run(TrainingRunConfig):
    """A sequence of offline tasks of different sizes."""

    method: Literal["vqcd"]
    tasks: tuple[TaskConfig, ...]
    """Their places here number them: keys and owned weights follow from the number."""
    order: tuple[str, ...] = ()
    """Names in the order of learning; empty: as listed."""
    alignment: SpacesConfig = SpacesConfig()
    planner: PlannerChoices = PlannerChoices()
    steps: PositiveInt = 5000
    """Training steps a task."""
    curve: PositiveInt = 1
    """Equal parts of a task's training after each of which the task is played; from 2 on, forward
    transfer against `single` can be said."""
    learners: tuple[LearnerConfig, ...] = (LearnerConfig(),)
    """The first is the run's own, whose planners are saved; the others are compared with it."""
    replay_share: OpenFraction = 0.01
    """Share of a task's windows, the last ones, that learners with replay keep (at least two
    batches)."""
    penalty_batches: PositiveInt = 100
    """Batches that the importance of weights is estimated from (EWC, MAS)."""
    target: TargetConfig = TargetConfig()
    evaluation: PlayConfig = PlayConfig()

    @field_validator("learners", mode="before")
    @classmethod
    def _kinds(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [{"kind": one} if isinstance(one, str) else one for one in value]
        return value

    @model_validator(mode="after")
    def _fields_fit(self) -> Run:
        names = [task.name for task in self.tasks]
        for given, what in ((names, "tasks"), ([x.title for x in self.learners], "learners")):
            if not given:
                raise ValueError(f"{what}: expected at least one")
            for name, count in Counter(given).items():
                if count > 1:
                    raise ValueError(f"{what}: expected different names, got {name!r} twice")
        for name in self.order:
            if name not in names:
                raise ValueError(f"order: unknown task {name!r}{nearest(name, names)}")
        if self.order and sorted(self.order) != sorted(names):
            raise ValueError(
                f"order: expected each of {', '.join(names)} once, got {', '.join(self.order)}"
            )
        if self.steps < self.curve:
            raise ValueError(f"curve: expected at most the {self.steps} steps, got {self.curve}")
        return self

    @property
    def sequence(self) -> tuple[int, ...]:
        """Numbers of the tasks in the order of learning."""
        places = {task.name: place for place, task in enumerate(self.tasks)}
        return tuple(places[name] for name in self.order) or tuple(range(len(self.tasks)))
