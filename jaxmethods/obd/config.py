"""Configs of a distillation and of its runs; the defaults are the paper's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from jaxmethods.config import Config, Momentum, OnResume, RunConfig, Seed, TrainingRunConfig
from jaxmethods.offline_rl.config import CalQLConfig, IQLConfig

Objective = Literal["dbc", "pbc", "pbc_scaled", "avpbc"]
Table = Literal["own", "architectures", "optimizers"]


# Distillation


class StudentConfig(Config):
    """The policy that is trained on the synthetic set."""

    kind: Literal["tanh_gaussian", "deterministic"] = "tanh_gaussian"
    n_layers: PositiveInt = 4
    """Linear layers; of `tanh_gaussian` (`deterministic` always has three)."""
    hidden: PositiveInt = 256
    residual: bool = False

    @model_validator(mode="after")
    def _deep_enough(self) -> StudentConfig:
        if self.residual and self.n_layers < 3:
            raise ValueError(f"n_layers: expected at least 3 with residual, got {self.n_layers}")
        return self


class OBDConfig(Config):
    """One distillation: the synthetic set, the inner training, the outer objective and update."""

    objective: Objective = "avpbc"
    """What the student is compared with: the data's actions (`dbc`), the teacher's (`pbc`), the
    teacher's with weight beta_w q (`avpbc`), or with that weight's batch mean (`pbc_scaled`)."""
    n_syn: PositiveInt = 256
    """N: synthetic pairs."""
    syn_init: Literal["data", "noise", "top_q", "cluster_q"] = "data"
    """Where they start: random rows of the data, N(0, I) states with uniform actions, the rows of
    the highest q, or of each of N clusters the row of the highest q."""
    student: StudentConfig = StudentConfig()
    inner_steps: PositiveInt = 100
    """T: full-batch steps of behavioral cloning from a fresh student."""
    inner_lr: NonNegativeFloat = 0.1
    inner_momentum: Momentum = 0.0
    inner_noise: NonNegativeFloat = 1.0
    """Scale of the student's action noise in the inner loop; 0 clones with deterministic actions,
    an ablation."""
    outer_lr: NonNegativeFloat = 0.1
    outer_momentum: Momentum = 0.9
    clip: PositiveFloat = 2.0
    """Largest joint norm of the gradient to states and actions."""
    batch: PositiveInt = 2560
    """B: states of the outer loss, drawn from the data without replacement."""
    beta_w: NonNegativeFloat = 0.02
    """Weight of a state is beta_w q1(s, a*)."""
    weight_norm: Literal["none", "mean"] = "none"
    """Divide the weights by their batch mean (its magnitude, where it is below 0)."""
    weight_clip_min: float | None = None
    """Smallest weight; 0 keeps a critic with negative values from pushing students away."""
    n_inits: PositiveInt = 1
    """J: students whose gradients are averaged in one outer step."""
    init_pool: NonNegativeInt = 0
    """Draw this many initial students once and pick from them; 0: a fresh one each time. Saves the
    orthogonalization at every step, which is slow on a GPU."""
    mode: Literal["mixed", "mixed_saved", "reverse", "remat"] = "mixed"
    """How the gradient through the inner loop is computed; the numbers are the same."""
    truncate: NonNegativeInt | None = None
    """Differentiate through this many of the last inner steps only (biased); None: all."""
    replay_noise: bool = True
    """False evaluates the backward pass with fresh noise, as the published code does: then the
    gradient is not that of the loss."""

    @model_validator(mode="after")
    def _fields_fit(self) -> OBDConfig:
        if not self.replay_noise and self.mode != "mixed":
            raise ValueError(f"mode: expected 'mixed' with replay_noise = false, got {self.mode!r}")
        if self.truncate is not None and self.mode not in ("mixed", "mixed_saved"):
            raise ValueError(
                f"mode: expected 'mixed' or 'mixed_saved' with truncate, got {self.mode!r}"
            )
        return self


# Weights, baselines and judges


class FlowConfig(Config):
    """A masked autoregressive flow and its training."""

    blocks: PositiveInt = 5
    hidden: PositiveInt = 128
    """Width of the two hidden layers of a block."""
    batch: PositiveInt = 1024
    learning_rate: PositiveFloat = 1e-3
    steps: Annotated[NonNegativeInt, OnResume.GROW] = 20_000


class DensityConfig(Config):
    """State-density weighting (SDW) of the outer loss."""

    tau: NonNegativeFloat = 0.0
    """Power of the reciprocal density, per dimension; 0: no weighting and no density stage."""
    flow: FlowConfig = FlowConfig()


class CloningConfig(Config):
    """Behavioral cloning on the whole data."""

    batch: PositiveInt = 256
    optimizer: Literal["sgd", "adam"] = "adam"
    learning_rate: PositiveFloat = 3e-4
    noise: NonNegativeFloat = 1.0
    """Scale of the action noise; 0 clones with deterministic actions."""


class ComparisonConfig(Config):
    """What the distilled set is compared with at the end."""

    cloning: CloningConfig = CloningConfig()
    cloning_steps: Annotated[NonNegativeInt, OnResume.GROW] = 0
    """Minibatch steps of cloning all the data, as one more competitor; 0: none."""


class PlayConfig(Config):
    """Where students play, how many and how often."""

    environment: str | None
    """See `EvaluationConfig`; None: nobody plays."""
    students: PositiveInt = 10
    episodes: PositiveInt = 10
    processes: Annotated[PositiveInt, OnResume.CHANGE] = 1
    """The number of processes that MuJoCo's episodes are spread over."""


class EvaluationConfig(PlayConfig):
    """How distilled sets are judged."""

    environment: str | None = None
    """hopper, halfcheetah or walker2d (MuJoCo, extra `rl`); pendulum, or brax:TASK with one of
    brax's tasks (in JAX; extra `brax`); or null: students don't play, and the offline loss is all
    that is measured."""
    random_selection: bool = True
    """Measure students of as many random real pairs beside those of the distilled set."""


class TablePlayConfig(PlayConfig):
    """Where students play, how many and how often."""

    environment: str
    """hopper, halfcheetah or walker2d (MuJoCo, extra `rl`); pendulum, or brax:TASK with one of
    brax's tasks (in JAX; extra `brax`)."""


# Runs


class DataConfig(Config):
    """The offline data: a file, or generated on the spot."""

    path: Path | None = None
    """npz, D4RL HDF5 or Minari HDF5."""
    generate: Literal["arm", "linear", "pendulum", "point_mass"] | None = None
    """Instead of a file: the environment to play with a disturbed scripted controller."""
    episodes: PositiveInt = 20
    """Generated episodes of each of seven behaviors."""
    seed: Seed = 0
    """Seed of the generated data."""

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if (self.path is None) == (self.generate is None):
            raise ValueError("path: expected either a file or `generate`")
        return self


class TeacherConfig(Config):
    """The near-expert policy and its critic: a file, or learned from the data."""

    path: Path | None = None
    """npz, see `jaxmethods.obd.recipes.teacher_files`."""
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


class DistillRun(TrainingRunConfig):
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
    def _teacher_where_needed(self) -> DistillRun:
        config, teacher = self.distillation, self.teacher
        needed = config.objective != "dbc" or config.syn_init in ("top_q", "cluster_q")
        if needed and teacher.path is None and teacher.learn is None:
            raise ValueError(
                f"teacher: expected a path, or `learn`, with objective {config.objective!r}"
            )
        return self


class TablesRun(RunConfig):
    """What a distilled set is worth to other students than it was made for."""

    method: Literal["obd_tables"]
    path: Path
    """SYN.npz, its card SYN.json beside it."""
    tables: Annotated[tuple[Table, ...], Field(min_length=1)] = get_args(Table)
    """Students as the card says (`own`), of every architecture, by every optimizer."""
    evaluation: TablePlayConfig

    @model_validator(mode="after")
    def _tables_differ(self) -> TablesRun:
        if len(set(self.tables)) < len(self.tables):
            raise ValueError(f"tables: expected different ones, got {', '.join(self.tables)}")
        return self
