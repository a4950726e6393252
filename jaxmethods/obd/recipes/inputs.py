"""The config of a distillation run, and what it reads."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import jax
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from jaxmethods.config import Config, OnResume, TrainingRunConfig
from jaxmethods.data.generated import mixed_quality
from jaxmethods.data.offline import FlatDataset, episode_ends, q_learning_rows, read_offline
from jaxmethods.envs.control.episodes import make_control
from jaxmethods.envs.control.pendulum import swing_up
from jaxmethods.numerics.keys import named
from jaxmethods.obd import density
from jaxmethods.obd.config import OBDConfig
from jaxmethods.obd.evaluate import EvaluationConfig, check_environment, check_spaces
from jaxmethods.obd.recipes import distilled_files as distilled
from jaxmethods.obd.recipes.comparison import ComparisonConfig
from jaxmethods.obd.recipes.teacher_files import check_teacher, load_teacher
from jaxmethods.obd.types import Source
from jaxmethods.offline_rl.config import CalQLConfig, IQLConfig
from jaxmethods.offline_rl.dataset import offline_data
from jaxmethods.offline_rl.transitions import Transitions, make_transitions, whole_returns
from jaxmethods.offline_rl.types import Norm, OfflineData

CONTROLLERS: dict[str, Callable[[jax.Array], jax.Array]] = {"pendulum": swing_up}
"""Environment of which data can be generated, to the scripted controller that plays it."""


class DataConfig(Config):
    """The offline data: a file, or generated on the spot."""

    path: Path | None = None
    """npz, D4RL HDF5 or Minari HDF5."""
    generate: Literal["pendulum"] | None = None
    """Instead of a file: the environment to play with a disturbed scripted controller."""
    episodes: PositiveInt = 20
    """Generated episodes of each of seven behaviors."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of the generated data."""

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if (self.path is None) == (self.generate is None):
            raise ValueError("path: expected either a file or `generate`")
        return self


class TeacherConfig(Config):
    """The near-expert policy and its critic: a file, or learned from the data."""

    path: Path | None = None
    """npz, see `jaxmethods.obd.teacher`."""
    learn: Literal["calql", "iql"] | None = None
    steps: Annotated[PositiveInt, OnResume.GROW] = 1_000_000
    """Gradient steps of the offline reinforcement learning."""
    calql: CalQLConfig = CalQLConfig()
    iql: IQLConfig = IQLConfig()

    @model_validator(mode="after")
    def _one_source(self) -> TeacherConfig:
        if self.path is not None and self.learn is not None:
            raise ValueError(f"learn: expected null with a path, got {self.learn!r}")
        return self


class DensityConfig(Config):
    """State-density weighting (SDW) of the outer loss."""

    tau: NonNegativeFloat = 0.0
    """Power of the reciprocal density, per dimension; 0: no weighting and no density stage."""
    flow: density.FlowConfig = density.FlowConfig()


class Run(TrainingRunConfig):
    """A distillation run."""

    method: Literal["obd"]
    data: DataConfig
    teacher: TeacherConfig = TeacherConfig()
    density: DensityConfig = DensityConfig()
    distillation: OBDConfig = OBDConfig()
    outer_steps: Annotated[PositiveInt, OnResume.GROW] = 50_000
    """M: updates of the synthetic set."""
    evaluation: EvaluationConfig = EvaluationConfig()
    comparison: ComparisonConfig | None = None
    """Compare the distilled set with real pairs, the teacher and cloning at the end."""

    @model_validator(mode="after")
    def _teacher_where_needed(self) -> Run:
        config, teacher = self.distillation, self.teacher
        needed = config.objective != "dbc" or config.syn_init in ("top_q", "cluster_q")
        if needed and teacher.path is None and teacher.learn is None:
            raise ValueError(
                f"teacher: expected a path, or `learn`, with objective {config.objective!r}"
            )
        return self


class Inputs:
    """What a run reads or generates, once, and checked against everything that will use it."""

    def __init__(self, run: Run):
        check_environment(run.evaluation)
        self.run = run
        self.offline = cache(self._offline)
        self.teacher = None if run.teacher.path is None else load_teacher(run.teacher.path)
        self._flat = None if run.data.path is None else read_offline(run.data.path)
        # As they are now: at the end of the run they may have moved.
        self.files = {
            "source": distilled.describe_file(run.data.path),
            "teacher": distilled.describe_file(run.teacher.path),
        }
        self._check()

    def flat(self) -> FlatDataset:
        if self._flat is None:
            env = make_control(str(self.run.data.generate))
            play = CONTROLLERS[str(self.run.data.generate)]
            key = named(jax.random.key(self.run.data.seed), "data")
            self._flat = mixed_quality(env, play, key, self.run.data.episodes)
        return self._flat

    def transitions(self) -> Transitions:
        learner = getattr(self.run.teacher, self.run.teacher.learn or "calql")
        return make_transitions(self.flat(), self.offline()[1], learner.discount)

    def returns(self) -> jax.Array:
        """[L]: the return of the episode that each row of the offline data belongs to."""
        flat = self.flat()
        whole = whole_returns(flat.rewards, episode_ends(flat))
        return whole[q_learning_rows(flat).index]

    def _offline(self) -> tuple[OfflineData, Norm]:
        return offline_data(self.flat())

    def _check(self) -> None:
        data, norm = self.offline()
        if self.run.teacher.learn is not None or self.run.comparison is not None:
            episode_ends(self.flat())  # returns will be needed, which rows in no order don't have
        check_teacher(Source(data, norm, self.teacher))
        sizes = data.states.shape[1], data.actions.shape[1]
        check_spaces(self.run.evaluation.environment, *sizes)
        config = self.run.distillation
        for name in ("n_syn", "batch"):
            if getattr(config, name) > len(data.states):
                raise ValueError(
                    f"distillation.{name}: expected at most the {len(data.states)} rows of the "
                    f"data, got {getattr(config, name)}"
                )
