"""The config of a continual run: its tasks, in which order, and who learns them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    field_validator,
    model_validator,
)

from jaxmethods.config import Config, Fraction, OpenFraction, TrainingRunConfig, nearest
from jaxmethods.data.generated import QUALITIES
from jaxmethods.envs.control.episodes import BRAX, CONTROL, CONTROLLERS, make_control
from jaxmethods.offline_rl.mujoco_returns import ENVIRONMENTS
from jaxmethods.vqcd.config import AlignmentConfig, PlannerConfig

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


class EnvironmentConfig(Config):
    """Which environment; every further field is an argument of its constructor."""

    model_config = ConfigDict(extra="allow")

    name: str
    """hopper, walker2d, halfcheetah or reacher (MuJoCo, extra `rl`); pendulum, point_mass, arm or
    linear (ours, in JAX); or brax:TASK with one of brax's tasks (in JAX; extra `brax`)."""

    @property
    def in_jax(self) -> bool:
        """Whether episodes are played inside of a compiled program."""
        return self.name.startswith(BRAX) or self.name in CONTROL

    def make(self) -> Any:
        """An environment in JAX. Raises `ValueError` for an unknown name or argument."""
        return make_control(self.name, **(self.model_extra or {}))


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
    data_seed: NonNegativeInt = 0
    """Seed of the generated data."""
    environment: EnvironmentConfig | None = None
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
            if self.environment is None or self.environment.name not in CONTROLLERS:
                raise ValueError(
                    "environment: expected one with a scripted controller to generate data "
                    f"({', '.join(CONTROLLERS)})"
                )
        name = None if self.environment is None else self.environment.name
        known = {*ENVIRONMENTS, *CONTROL}
        if name is not None and not name.startswith(BRAX) and name not in known:
            raise ValueError(f"environment: unknown environment {name!r}{nearest(name, known)}")
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
    the same modules, but diffusion tells them from noise sooner. Not in the paper, whose codes
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
    """Cap on the steps of an episode, below the environment's own."""
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
    planner: PlannerConfig = PlannerConfig()
    """`tasks`, `network.channels` and `action_channels` follow from the rest of the config."""
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
        for config, name in (
            (self.planner, "tasks"),
            (self.planner, "action_channels"),
            (self.planner.network, "channels"),
        ):
            if getattr(config, name) != type(config).model_fields[name].default:
                raise ValueError(f"planner: {name} follows from tasks and alignment; leave it out")
        if self.steps < self.curve:
            raise ValueError(f"curve: expected at most the {self.steps} steps, got {self.curve}")
        return self

    @property
    def sequence(self) -> tuple[int, ...]:
        """Numbers of the tasks in the order of learning."""
        places = {task.name: place for place, task in enumerate(self.tasks)}
        return tuple(places[name] for name in self.order) or tuple(range(len(self.tasks)))
