"""Stages that train: the teacher on gold queries, every student by its objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.kid.config import DistillRun, FitConfig, KIDConfig, StudentConfig
from jaxmethods.kid.loss import Batch, rewrites
from jaxmethods.kid.method import Data, DistillState, distiller
from jaxmethods.kid.recipes.material import Material
from jaxmethods.kid.recipes.models import Model, Models, optimizer_of
from jaxmethods.kid.recipes.verdicts import judge_answers
from jaxmethods.layout import Layout, Rule
from jaxmethods.method import Method, Metrics, Objective
from jaxmethods.models.decoder.network import RULES
from jaxmethods.numerics.keys import named
from jaxmethods.stages import Evaluation, Results, Train

TEACHER = "teacher"
BATCH_RULES = (*RULES, Rule("slots$", ("data",)))


class Fed(NamedTuple):
    """What a stage is fed."""

    data: Data
    asked: tuple[Any, Any] | None
    """Prompts [Q, P] and their mask, which are answered while it trains."""


class Learned(NamedTuple):
    """What a stage finds."""

    params: Any
    """The whole model's."""
    adapters: Any
    """What was trained, where that is less than the model."""


def learns_teacher(run: DistillRun) -> bool:
    """Whether the teacher is trained here, for every seed."""
    return run.teacher.fit.steps > 0


def teacher_params(run: DistillRun, models: Models, results: Results) -> Any:
    """The teacher that was trained, with an axis of seeds, or the one that is read."""
    return results[TEACHER].params if learns_teacher(run) else models.teacher.read()


def uses_teacher(student: StudentConfig) -> bool:
    """Whether a student is compared with the teacher."""
    return student.loss.divergence.name != "none"


def reads_states(run: DistillRun, student: StudentConfig) -> bool:
    """Whether the teacher's states on gold responses, kept beforehand, are all that is needed."""
    source = student.source
    gold = source.student == source.teacher == 0 and source.replay is None
    written = rewrites(student.loss.imperfect)
    return run.teacher.cache != "none" and uses_teacher(student) and gold and not written


def teacher_stage(run: DistillRun, models: Models, material: Material) -> Train:
    """The teacher learns the gold queries."""
    learns = StudentConfig(objective="sft")
    method = _method(
        models.teacher, None, learns, run.teacher.fit, batch_parts(run, run.teacher.fit)
    )

    def data(results: Results) -> Fed:
        examples = material.texts(results).train
        return Fed(_data(examples, run.teacher.fit, models.teacher), _asked(run, material, results))

    return Train(
        TEACHER,
        method,
        run.teacher.fit.steps,
        data,
        result=lambda state, fed: _cast(models.teacher, _learned(models.teacher, state, fed)),
        evaluation=_evaluation(run, models.teacher, material),
        layout=Layout(state=RULES, batch=BATCH_RULES),
    )


def student_stage(
    run: DistillRun, models: Models, material: Material, student: StudentConfig
) -> Train:
    """A student learns by its objective; all see one order, and begin with the same weights but for
    those that go on from another.

    Args:
        run: the config.
        models: student and teacher.
        material: questions as texts and arrays.
        student: one of the run's.

    Returns:
        The stage, with the student's title.

    Raises:
        ValueError: a loss or a source that doesn't fit.
    """
    steps = student.steps or run.fit.steps
    fit = run.fit.model_copy(update={"steps": steps})
    other = models.teacher if uses_teacher(student) else None
    per_seed = ["^data/key$"]
    if learns_teacher(run) and other is not None:
        per_seed.append("^data/teacher/")
    if student.begin:
        per_seed.append("^data/base/")
    if learns_teacher(run) and student.source.teacher:
        per_seed.append("^data/taught/")
    if learns_teacher(run) and reads_states(run, student):
        per_seed.append("teacher_states$")

    def data(results: Results) -> Fed:
        fed = _data(material.texts(results).train, fit, models.student)
        if student.begin:
            fed = fed._replace(base=results[student.begin].params)
        if other is not None:
            fed = fed._replace(teacher=teacher_params(run, models, results))
        axis = int(learns_teacher(run))  # of questions, behind that of seeds
        if student.source.teacher:
            taught = _first(results["teacher_responses"], fit.questions, axis)
            fed = fed._replace(taught=taught)
        if reads_states(run, student):
            states = _first(results["teacher_states"], fit.questions, axis)
            fed = fed._replace(examples=fed.examples._replace(teacher_states=states))
        if student.source.replay is not None:
            last = student.source.replay.validation_rows
            fed = fed._replace(
                examples=jax.tree.map(lambda leaf: leaf[:-last], fed.examples),
                held_back=jax.tree.map(lambda leaf: leaf[-last:], fed.examples),
            )
        fed = fed._replace(key=_keys(run, "students"))
        return Fed(fed, _asked(run, material, results))

    return Train(
        student.title,
        _method(models.student, other, student, fit, batch_parts(run, fit)),
        steps,
        data,
        result=lambda state, fed: _learned(models.student, state, fed),
        evaluation=_evaluation(run, models.student, material),
        layout=Layout(state=RULES, batch=BATCH_RULES, per_seed=per_seed),
    )


def batch_parts(run: DistillRun, fit: FitConfig) -> int:
    """How many devices a batch is split over: those of `mesh.data`, unless seeds are."""
    mesh = run.mesh
    left = max(jax.device_count() // (mesh.fsdp * mesh.tensor), 1)
    devices = left if mesh.data == -1 else mesh.data
    by_seed = run.seeds > 1 and run.seeds % devices == 0
    return 1 if by_seed or fit.batch % devices else devices


def _method(
    model: Model, teacher: Model | None, student: StudentConfig, fit: FitConfig, devices: int
) -> Method:
    """The training of a model, fed with `Fed`; `devices`: what a batch is split over."""
    own = distiller(
        model.language,
        None if teacher is None else teacher.language,
        optimizer_of(fit, fit.steps),
        _loss(student.loss, fit, devices),
        rows=fit.batch,
        init=model.init,
        source=student.source,
        steps=fit.steps,
        assemble=model.assemble,
    )

    def step(state: DistillState, fed: Fed) -> tuple[DistillState, Metrics]:
        return own.step(state, fed.data)

    def objective(state: DistillState, fed: Fed) -> Objective:
        assert own.objective is not None
        return own.objective(state, fed.data)

    return Method(lambda key, fed: own.init(key, fed.data), step, objective)


def _loss(loss: KIDConfig, fit: FitConfig, devices: int) -> KIDConfig:
    parts = max(loss.micro_batches, fit.micro_batches)
    # A chunk has tokens of all devices, and the head's gradient is added up behind each.
    chunk = loss.logit_chunk * devices
    return loss.model_copy(update={"micro_batches": parts, "logit_chunk": chunk})


def _data(examples: Batch, fit: FitConfig, model: Model) -> Data:
    slots = np.arange(fit.batch, dtype=np.int32)
    examples = _first(examples, fit.questions)
    return Data(examples, None, base=model.read(), slots=slots)  # type: ignore[arg-type]


def _first(tree: Any, number: int | None, axis: int = 0) -> Any:
    """The first entries of an axis of all leaves; None: all of them."""
    where = (*[slice(None)] * axis, slice(number))
    return jax.tree.map(lambda leaf: leaf[where], tree)


def _learned(model: Model, state: DistillState, fed: Fed) -> Learned:
    whole = model.finished(state.params, fed.data)
    return Learned(whole, None if model.adapters is None else state.params)


def _cast(model: Model, learned: Learned) -> Learned:
    """A teacher that computes in half precision is kept in it."""
    dtype = jnp.dtype(model.settings.dtype)
    return learned._replace(params=jax.tree.map(lambda leaf: leaf.astype(dtype), learned.params))


def _asked(run: DistillRun, material: Material, results: Results) -> tuple[Any, Any] | None:
    """The questions of the learning curve."""
    if not run.evaluation.curve:
        return None
    first = next(iter(material.texts(results).judged.values()))
    number = run.evaluation.curve
    return first.prompts[:number], first.mask[:number]


def _evaluation(run: DistillRun, model: Model, material: Material) -> Evaluation | None:
    """Answers to the questions of the curve, and how many are right."""
    if not run.evaluation.curve:
        return None
    generate = model.language.generate
    assert generate is not None

    def measure(state: DistillState, fed: Fed, key: jax.Array) -> Any:
        assert fed.asked is not None
        params = model.assemble(state.params, fed.data)
        return generate(params, *fed.asked, key, run.data.max_output, 0.0)

    def judge(measures: Any) -> Mapping[str, np.ndarray]:
        texts = material.latest()
        asked = next(iter(texts.judged.values()))
        return judge_answers(texts, asked.examples[: run.evaluation.curve], measures).means()

    return Evaluation(measure, judge)


def _keys(run: DistillRun, name: str) -> jax.Array:
    """[seeds], for one purpose."""
    seeds = jnp.arange(run.seeds) + run.seed
    return jax.vmap(lambda seed: named(jax.random.key(seed), name))(seeds)
