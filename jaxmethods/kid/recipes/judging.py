"""The last stage: all models answer all judged splits, and the answers are executed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.kid.config import DistillRun
from jaxmethods.kid.exposure import excess_accumulated_error
from jaxmethods.kid.recipes.answering import answer, exposure_of
from jaxmethods.kid.recipes.learning import TEACHER, learns_teacher, teacher_params
from jaxmethods.kid.recipes.material import Material
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
from jaxmethods.models.decoder.network import RULES
from jaxmethods.numerics.keys import named
from jaxmethods.sql.judge import file_hash
from jaxmethods.stages import Arrays, Compute, Part, Place, Results

JUDGED = "judged"
FREQUENT = "most_frequent"


class Judged(NamedTuple):
    """What the judge said of a run's models."""

    titles: tuple[str, ...]
    """The teacher, then the students, in their order: dictionaries have none behind a stage."""
    splits: tuple[str, ...]
    """The most important first."""
    verdicts: dict[str, dict[str, Verdicts]]
    """Model -> split."""
    exposure: dict[str, np.ndarray]
    """Student -> excess of its accumulated error over the length of a response, [S, R] percent."""
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
    titles = [student.title for student in run.students]
    splits = judged_splits(run.data)

    def parts(results: Results, place: Place) -> list[Part]:
        texts = material.texts(results)
        read: list[Any] = []

        def teacher() -> Any:
            if learns_teacher(run):
                return teacher_params(run, models, results)
            if not read:
                read.append(place(models.teacher.read(), Layout(batch=RULES)))
            return read[0]

        def answers(title: str, split: str, sample: int | None = None) -> Arrays:
            own = title == TEACHER
            model = models.teacher if own else models.student
            seeds = learns_teacher(run) if own else True
            return answer(
                model.language,
                teacher() if own else results[title].params,
                (texts.judged[split].prompts, texts.judged[split].mask),
                keys(run, f"answers {split} {sample}")[: run.seeds if seeds else 1],
                place,
                rows=run.evaluation.rows,
                length=run.data.max_output,
                temperature=0.0 if sample is None else run.evaluation.vote_temperature,
                per_seed=seeds,
                beams=run.evaluation.beams if sample is None else 1,
            )._asdict()

        def exposure(title: str) -> Arrays:
            asked = next(iter(texts.judged.values()))
            number = run.evaluation.exposure
            return exposure_of(
                models.student.language,
                results[title].params,
                models.teacher.language,
                teacher(),
                (asked.prompts[:number], asked.mask[:number]),
                keys(run, "exposure"),
                place,
                length=texts.train.responses.shape[1],
                per_seed=learns_teacher(run),
            )

        found = [
            Part(f"{title}-{split}", partial(answers, title, split))
            for title in (TEACHER, *titles)
            for split in splits
        ]
        found += [
            Part(f"{title}-sample-{sample}", partial(answers, title, splits[0], sample))
            for title in (TEACHER, *titles)
            for sample in range(run.evaluation.vote)
        ]
        if run.evaluation.exposure:
            found += [Part(f"{title}-exposure", partial(exposure, title)) for title in titles]
        return found

    def finish(found: Sequence[Arrays]) -> Judged:
        texts = material.latest()
        verdicts: dict[str, dict[str, Verdicts]] = {title: {} for title in (TEACHER, *titles)}
        left = iter(found)
        for title in verdicts:
            for split in splits:
                one = next(left)
                asked, given = texts.judged[split].examples, (one["tokens"], one["lengths"])
                if run.evaluation.beams > 1:
                    given = best_beams(texts, asked, given)
                verdicts[title][split] = judge_answers(texts, asked, given)
        voted = {}
        for title in verdicts if run.evaluation.vote else ():
            samples = [next(left) for _ in range(run.evaluation.vote)]
            given = [(one["tokens"], one["lengths"]) for one in samples]
            voted[title] = elect(texts, texts.judged[splits[0]].examples, given)
        fuzzed = {}
        if run.evaluation.fuzz:
            first = {title: own[splits[0]] for title, own in verdicts.items()}
            asked = texts.judged[splits[0]].examples
            fuzzed = judge_fuzzed(texts, asked, first, run.evaluation.fuzz, run.seed)
        curves = {}
        for title in titles if run.evaluation.exposure else ():
            one = next(left)
            each = jax.vmap(excess_accumulated_error)(one["on_student"], one["on_teacher"])
            curves[title] = np.asarray(each)
        frequent = {}
        for split, asked in texts.judged.items():
            constant = most_frequent(texts, asked.examples)
            ended = np.ones((1, len(constant)), bool)
            plain = judge_queries(texts, asked.examples, [constant], ended)
            frequent[split] = float(plain.execution.mean())
        paths = {x.database for asked in texts.judged.values() for x in asked.examples}
        return Judged(
            (TEACHER, *titles),
            splits,
            verdicts,
            curves,
            voted,
            fuzzed,
            frequent,
            texts.questions.executor().sqlite_version,
            {path.name: file_hash(path) for path in sorted(paths)},
        )

    return Compute(JUDGED, parts, finish, partial(metrics, run.seeds))


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
            found[f"{title}_exposure_error"] = judged.exposure[title][:, -1]
    for split in judged.splits:
        found[f"{FREQUENT}_{split}_execution"] = judged.frequent[split]
    return found


def keys(run: DistillRun, name: str) -> jax.Array:
    """[seeds], for one purpose."""
    seeds = jnp.arange(run.seeds) + run.seed
    return jax.vmap(lambda seed: named(jax.random.key(seed), name))(seeds)
