"""OBD on the command line: from a dataset to a distilled set that is tested and written down.

The stages are those that the config asks for: a teacher learnt from the data alone, the density
of its states, and the distillation. A teacher or density that is learnt is learnt for each seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from pydantic import Field, model_validator

from jaxmethods.config import Config, OnResume, TrainingRunConfig
from jaxmethods.data.generated import mixed_quality
from jaxmethods.data.offline import FlatDataset, episode_ends, q_learning_rows, read_offline
from jaxmethods.envs.control import make_control
from jaxmethods.envs.pendulum import swing_up
from jaxmethods.keys import named
from jaxmethods.method import Batch, Rule, Stage, State
from jaxmethods.obd import comparison, density, distilled, figures, method
from jaxmethods.obd.baselines import cloning
from jaxmethods.obd.comparison import (
    ComparisonConfig,
    Entries,
    contest,
    judge_policies,
    real_sets,
)
from jaxmethods.obd.config import NonNegative, OBDConfig, PositiveInt
from jaxmethods.obd.dataset import offline_data
from jaxmethods.obd.evaluate import EvaluationConfig, check_environment, check_spaces, judge
from jaxmethods.obd.offline_rl import calql, iql
from jaxmethods.obd.offline_rl.config import CalQLConfig, IQLConfig
from jaxmethods.obd.offline_rl.transitions import (
    Transitions,
    make_transitions,
    whole_returns,
)
from jaxmethods.obd.policy import tanh_gaussian
from jaxmethods.obd.teacher import check_teacher, load_teacher
from jaxmethods.obd.types import Norm, OfflineData, Source, Teacher

CONTROLLERS: dict[str, Callable[[jax.Array], jax.Array]] = {"pendulum": swing_up}
"""Environment of which data can be generated, to the scripted controller that plays it."""


class DataConfig(Config):
    """The offline data: a file, or generated on the spot."""

    path: Path | None = None
    """npz, D4RL HDF5 or Minari HDF5."""
    generate: Literal["pendulum"] | None = None
    """Instead of a file: the environment to play with a disturbed scripted controller."""
    episodes: PositiveInt = 20
    """Generated episodes of each of seven behaviours."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of the generated data."""

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if (self.path is None) == (self.generate is None):
            raise ValueError("path: expected either a file or `generate`")
        return self


class TeacherConfig(Config):
    """The near-expert policy and its critic: a file, or learnt from the data."""

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

    tau: NonNegative = 0.0
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


RULES = (Rule(r"^(syn|optimizer)/", ("data",)),)
"""A set's pairs are split over `data`, if they must be: several seeds are split before."""


def stages(run: Run) -> list[Stage]:
    """Offline reinforcement learning and density where asked for, then the distillation.

    Raises:
        DataError: a file cannot be used; files are read here, before anything is written.
        ValueError: sizes that don't fit the data, an unknown environment.
    """
    check_environment(run.evaluation)
    inputs = Inputs(run)
    before: list[Stage] = []
    if run.teacher.learn is not None:
        before.append(offline_rl_stage(run, inputs))
    if run.density.tau > 0:
        before.append(density_stage(run, inputs))
    names = [stage.name for stage in before]
    distilling = [*before, distillation_stage(run, inputs, names)]
    if run.comparison is None:
        return distilling
    if run.comparison.cloning_steps:
        distilling.append(cloning_stage(run, run.comparison, inputs))
    names = [stage.name for stage in distilling]
    return [*distilling, comparison_stage(run, inputs, names)]


class Inputs:
    """What a run reads or generates, once, and checked against everything that will use it."""

    def __init__(self, run: Run):
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


def offline_rl_stage(run: Run, inputs: Inputs) -> Stage:
    """A teacher from the data alone."""
    learner = (
        iql.learner(run.teacher.iql, run.teacher.steps)
        if run.teacher.learn == "iql"
        else calql.learner(run.teacher.calql)
    )

    def data(finished: Sequence[State]) -> Batch:
        del finished
        return inputs.transitions()

    def policies(states: State) -> Any:
        return jax.vmap(_teacher_of(run))(states).policy

    return Stage(
        "offline_rl",
        learner,
        run.teacher.steps,
        data,
        judge=partial(judge_policies, run.evaluation, policies, lambda: inputs.offline()[1]),
    )


def density_stage(run: Run, inputs: Inputs) -> Stage:
    """A flow fitted to the states."""

    def data(finished: Sequence[State]) -> Batch:
        del finished
        return inputs.offline()[0].states

    flow = run.density.flow
    return Stage("density", density.flow_learner(flow), flow.steps, data)


def distillation_stage(run: Run, inputs: Inputs, before: Sequence[str]) -> Stage:
    """The distillation, fed by the stages of the names `before` that ran before it."""
    config = run.distillation

    def data(finished: Sequence[State]) -> Batch:
        return source(run, inputs, dict(zip(before, finished, strict=False)))

    def export(states: State, folder: Path) -> None:
        write_sets(run, inputs, states, folder)

    def draw(state: State, folder: Path) -> None:
        figures.draw_set(state.syn, inputs.offline()[0], folder / "synthetic_set.png")

    per_seed = OfflineData(None, None, 0 if "density" in before else None)  # type: ignore[arg-type]
    teacher = 0 if "offline_rl" in before else None
    return Stage(
        name="distillation",
        method=method.distiller(config),
        steps=run.outer_steps,
        data=data,
        judge=partial(judge, run.evaluation, config),
        score=None if run.evaluation.environment is None else "score",
        rules=RULES,
        draw=draw,
        export=export,
        batch_axes=Source(per_seed, None, teacher, None),  # type: ignore[arg-type]
    )


def source(run: Run, inputs: Inputs, finished: dict[str, State]) -> Source:
    """What is distilled; teacher and density weights have a seed axis where they were learnt."""
    data, norm = inputs.offline()
    teacher: Teacher | None = inputs.teacher
    if "offline_rl" in finished:
        teacher = jax.vmap(_teacher_of(run))(finished["offline_rl"])
    if "density" in finished:
        weigh = partial(_density_weights, run.density.tau)
        weights = jax.vmap(weigh, (0, None))(finished["density"].params, data.states)
        data = data._replace(density_weights=weights)
    if not run.distillation.init_pool:
        return Source(data, norm, teacher)
    config = run.distillation
    key = named(jax.random.key(run.seed), "initial students")
    unpooled = Source(data, norm, teacher)
    pool = method.init_pool(key, config, unpooled, method.make_student(config.student))
    return unpooled._replace(init_pool=pool)


def cloning_stage(run: Run, against: ComparisonConfig, inputs: Inputs) -> Stage:
    """Behavioural cloning on all the data, to compare with."""

    def data(finished: Sequence[State]) -> Batch:
        del finished
        return inputs.offline()[0]

    plain = tanh_gaussian(run.distillation.student.n_layers, run.distillation.student.hidden)
    return Stage(
        "cloning",
        cloning(against.cloning, plain),
        against.cloning_steps,
        data,
        judge=partial(
            judge_policies, run.evaluation, lambda s: s.params, lambda: inputs.offline()[1]
        ),
    )


def comparison_stage(run: Run, inputs: Inputs, before: Sequence[str]) -> Stage:
    """Students of the distilled set and of real pairs, fed by the stages of the names `before`."""
    config = run.distillation

    def data(finished: Sequence[State]) -> Batch:
        return entries(run, inputs, dict(zip(before, finished, strict=False)))

    policies = {}
    if run.teacher.learn is not None or run.teacher.path is not None:
        policies["teacher"] = 0 if "offline_rl" in before else None
    if "cloning" in before:
        policies["cloning_all_data"] = 0
    return Stage(
        "comparison",
        contest(config, run.evaluation.students),
        config.inner_steps,
        data,
        judge=partial(comparison.judge, run.evaluation, config),
        draw=partial(comparison.draw, run.evaluation, config),
        batch_axes=Entries(0, policies, None),  # type: ignore[arg-type]
    )


def entries(run: Run, inputs: Inputs, finished: dict[str, State]) -> Entries:
    """What competes at the end: sets with a seed axis, policies with one where they have it."""
    data, norm = inputs.offline()
    teacher = source(run, inputs, finished).teacher
    policies = {} if teacher is None else {"teacher": teacher.policy}
    if "cloning" in finished:
        policies["cloning_all_data"] = finished["cloning"].params
    seeds = jnp.arange(run.seeds) + run.seed
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 2))(seeds)
    select = jax.vmap(real_sets, (0, None, None, None))
    selected = select(keys, data, inputs.returns(), run.distillation.n_syn)
    return Entries({"distilled": finished["distillation"].syn, **selected}, policies, norm)


def _teacher_of(run: Run) -> Callable[[State], Teacher]:
    return iql.teacher if run.teacher.learn == "iql" else calql.teacher


def _density_weights(tau: float, params: Any, states: jax.Array) -> jax.Array:
    log_p = density.state_log_prob(partial(density.flow_log_prob, params), states)
    return density.sdw_weights(log_p, tau, states.shape[-1])


def write_sets(run: Run, inputs: Inputs, states: State, folder: Path) -> None:
    """Writes every seed's set: syn.npz and its card, or syn-seed3.npz where there are several."""
    for place in range(run.seeds):
        state = jax.tree.map(lambda leaf, i=place: leaf[i], states)
        seed = run.seed + place
        name = "syn.npz" if run.seeds == 1 else f"syn-seed{seed}.npz"
        distilled.save(
            folder / name,
            method.used(state),
            inputs.offline()[1],
            run.distillation,
            seed=seed,
            outer_steps=int(state.step),
            **inputs.files,
        )
