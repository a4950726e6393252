"""The last stage: all models answer all judged splits, and the answers are executed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.kid.config import DistillRun
from jaxmethods.kid.exposure import excess_accumulated_error, excess_deviation
from jaxmethods.kid.recipes.answering import answer, exposure_of
from jaxmethods.kid.recipes.learning import TEACHER, learns_teacher, teacher_params
from jaxmethods.kid.recipes.material import Material, Texts
from jaxmethods.kid.recipes.models import Models
from jaxmethods.kid.recipes.questions import judged_splits
from jaxmethods.kid.recipes.verdicts import (
    Verdicts,
    best_beams,
    elect,
    judge_answers,
    judge_fuzzed,
    judge_queries,
    most_frequent,
)
from jaxmethods.layout import Layout
from jaxmethods.models.decoder import Generated
from jaxmethods.models.decoder.network import RULES
from jaxmethods.numerics.keys import named
from jaxmethods.sql.judge import file_hash
from jaxmethods.stages import Arrays, Compute, Part, Place, Results

JUDGED = "judged"
FREQUENT = "most_frequent"


class Exposure(NamedTuple):
    """Excess of a student's accumulated error, in percent."""

    curves: np.ndarray
    """[S, R], over the length of a response."""
    deviations: np.ndarray
    """[S], standard error over questions of the whole response's."""
    questions: int
    """E."""


class Judged(NamedTuple):
    """What the judge said of a run's models."""

    titles: tuple[str, ...]
    """The teacher, then the students, in their order: dictionaries have none behind a stage."""
    splits: tuple[str, ...]
    """The most important first."""
    verdicts: dict[str, dict[str, Verdicts]]
    """Model -> split."""
    exposure: dict[str, Exposure]
    """Student -> excess of its accumulated error."""
    voted: dict[str, Verdicts]
    """Model -> verdicts on the queries of the first split whose results most samples have."""
    fuzzed: dict[str, np.ndarray]
    """Model -> which queries of the first split are right on changed databases too, [S, Q]."""
    frequent: dict[str, float]
    """Split -> execution accuracy of each database's most frequent training query."""
    sqlite: str
    databases: dict[str, str]
    """File name -> the first digits of its SHA-256."""


def judged_stage(run: DistillRun, models: Models, material: Material) -> Compute:
    """Answers of the teacher and the students, verdicts on them, accumulated errors."""

    def parts(results: Results, place: Place) -> list[Part]:
        return Asking(run, models, material.texts(results), results, place).parts()

    def finish(found: Sequence[Arrays]) -> Judged:
        return judge(run, material.latest(), iter(found))

    return Compute(JUDGED, parts, finish, partial(metrics, run.seeds))


@dataclass(frozen=True)
class Asking:
    """The questions that all models of a run are asked, one part each, so that a stopped run goes
    on behind the last answered one."""

    run: DistillRun
    models: Models
    texts: Texts
    results: Results
    place: Place

    @cached_property
    def teacher(self) -> Any:
        """Its parameters, for each seed where it was trained here."""
        if learns_teacher(self.run):
            return teacher_params(self.run, self.models, self.results)
        return self.place(self.models.teacher.read(), Layout(batch=RULES))

    def parts(self) -> list[Part]:
        """In the order in which `judge` takes their answers."""
        evaluation, students = self.run.evaluation, [one.title for one in self.run.students]
        splits = judged_splits(self.run.data)
        found = [
            Part(f"{title}-{split}", partial(self.answers, title, split))
            for title in (TEACHER, *students)
            for split in splits
        ]
        found += [
            Part(f"{title}-sample-{sample}", partial(self.answers, title, splits[0], sample))
            for title in (TEACHER, *students)
            for sample in range(evaluation.vote)
        ]
        if evaluation.exposure:
            found += [Part(f"{one}-exposure", partial(self.exposure, one)) for one in students]
        return found

    def answers(self, title: str, split: str, sample: int | None = None) -> Arrays:
        """A model's answers to a split: the likeliest ones, or one sample of each."""
        run, own = self.run, title == TEACHER
        seeds = learns_teacher(run) if own else True
        return answer(
            (self.models.teacher if own else self.models.student).language,
            self.teacher if own else self.results[title].params,
            (self.texts.judged[split].prompts, self.texts.judged[split].mask),
            keys(run, f"answers {split} {sample}")[: run.seeds if seeds else 1],
            self.place,
            rows=run.evaluation.rows,
            length=run.data.max_output,
            temperature=0.0 if sample is None else run.evaluation.vote_temperature,
            per_seed=seeds,
            beams=run.evaluation.beams if sample is None else 1,
        )._asdict()

    @cached_property
    def sampled(self) -> tuple[tuple[np.ndarray, np.ndarray], Generated]:
        """Prompts of the first split, each as often as it is sampled, and the teacher's samples."""
        run, asked = self.run, next(iter(self.texts.judged.values()))
        number, samples = run.evaluation.exposure, run.evaluation.exposure_samples
        prompts, mask = (
            np.repeat(leaf[:number], samples, axis=0) for leaf in (asked.prompts, asked.mask)
        )
        taught = answer(
            self.models.teacher.language,
            self.teacher,
            (prompts, mask),
            keys(run, "exposure teacher"),
            self.place,
            rows=run.evaluation.rows,
            length=self.texts.train.responses.shape[1],
            temperature=1.0,
            per_seed=learns_teacher(run),
        )
        return (prompts, mask), taught

    def exposure(self, title: str) -> Arrays:
        """What a student's and the teacher's own prefixes cost it on the first split."""
        return exposure_of(
            self.models.student.language,
            self.results[title].params,
            self.models.teacher.language,
            self.teacher,
            *self.sampled,
            keys(self.run, "exposure"),
            self.place,
            rows=self.run.evaluation.rows,
            samples=self.run.evaluation.exposure_samples,
            per_seed=learns_teacher(self.run),
        )


def judge(run: DistillRun, texts: Texts, answers: Iterator[Arrays]) -> Judged:
    """Executes what `Asking.parts` answered, in their order."""
    evaluation, students = run.evaluation, [one.title for one in run.students]
    splits = judged_splits(run.data)
    titles = (TEACHER, *students)
    first = texts.judged[splits[0]].examples

    def verdicts_on(split: str) -> Verdicts:
        one, asked = next(answers), texts.judged[split].examples
        given = one["tokens"], one["lengths"]
        return judge_answers(
            texts, asked, best_beams(texts, asked, given) if evaluation.beams > 1 else given
        )

    verdicts = {title: {split: verdicts_on(split) for split in splits} for title in titles}
    voted, curves = {}, {}
    for title in titles if evaluation.vote else ():
        samples = [next(answers) for _ in range(evaluation.vote)]
        voted[title] = elect(texts, first, [(one["tokens"], one["lengths"]) for one in samples])
    for title in students if evaluation.exposure else ():
        one = next(answers)
        curves[title] = exposure_in(one["on_student"], one["on_teacher"])
    fuzzed = {}
    if evaluation.fuzz:
        plain = {title: own[splits[0]] for title, own in verdicts.items()}
        fuzzed = judge_fuzzed(texts, first, plain, evaluation.fuzz, run.seed)
    paths = {example.database for asked in texts.judged.values() for example in asked.examples}
    return Judged(
        titles,
        splits,
        verdicts,
        curves,
        voted,
        fuzzed,
        frequent_queries(texts),
        texts.questions.executor().sqlite_version,
        {path.name: file_hash(path) for path in sorted(paths)},
    )


def exposure_in(on_student: Any, on_teacher: Any) -> Exposure:
    """Excess of accumulated errors of every seed.

    Args:
        on_student, on_teacher: divergences [S, E, R] on responses of either to the same prompts.
    """
    pair = jnp.asarray(on_student), jnp.asarray(on_teacher)
    curves = jax.vmap(excess_accumulated_error)(*pair)
    deviations = jax.vmap(excess_deviation)(*pair)
    return Exposure(np.asarray(curves), np.asarray(deviations), pair[0].shape[1])


def frequent_queries(texts: Texts) -> dict[str, float]:
    """Split -> execution accuracy of each database's most frequent training query."""
    found = {}
    for split, asked in texts.judged.items():
        constant = most_frequent(texts, asked.examples)
        ended = np.ones((1, len(constant)), bool)
        plain = judge_queries(texts, asked.examples, [constant], ended)
        found[split] = float(plain.execution.mean())
    return found


def metrics(seeds: int, judged: Judged) -> dict[str, Any]:
    """Named numbers [seeds]; a teacher that all seeds share has the same one for each."""
    found: dict[str, Any] = {}
    for title in judged.titles:
        for split in judged.splits:
            for name, value in judged.verdicts[title][split].means().items():
                found[f"{title}_{split}_{name}"] = np.broadcast_to(value, (seeds,)).copy()
    for title in judged.titles:
        if title in judged.fuzzed:
            value = judged.fuzzed[title].mean(1)
            found[f"{title}_fuzzed_execution"] = np.broadcast_to(value, (seeds,)).copy()
        if title in judged.voted:
            value = judged.voted[title].means()["execution"]
            found[f"{title}_voted_execution"] = np.broadcast_to(value, (seeds,)).copy()
        if title in judged.exposure:
            found[f"{title}_exposure_error"] = judged.exposure[title].curves[:, -1]
    for split in judged.splits:
        found[f"{FREQUENT}_{split}_execution"] = judged.frequent[split]
    return found


def keys(run: DistillRun, name: str) -> jax.Array:
    """[seeds], for one purpose."""
    seeds = jnp.arange(run.seeds) + run.seed
    return jax.vmap(lambda seed: named(jax.random.key(seed), name))(seeds)
