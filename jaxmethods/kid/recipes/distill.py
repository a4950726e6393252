"""KID on the command line: a teacher, students that learn from it in different ways, a judge.

The stages are those that the config asks for: the generated world (`world`), a teacher that learns
its gold queries (`teacher`), what it does once (`teacher_responses`, `teacher_states`), every
student under its title, and the answers of all of them, executed (`judged`).

Zhong et al., "Learning from Imperfect Data", EMNLP 2024 Findings, arXiv 2410.11371.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmethods import sql
from jaxmethods.kid.config import DistillRun as Run
from jaxmethods.kid.recipes.diagnosis import diagnosable
from jaxmethods.kid.recipes.judging import JUDGED, judged_stage
from jaxmethods.kid.recipes.learning import (
    learns_teacher,
    reads_states,
    student_stage,
    teacher_stage,
)
from jaxmethods.kid.recipes.material import Material, encode_prompts, padded_left, shortened
from jaxmethods.kid.recipes.models import Models
from jaxmethods.kid.recipes.questions import judged_splits, write_questions
from jaxmethods.kid.recipes.report import report
from jaxmethods.kid.recipes.teaching import responses_stage, states_stage
from jaxmethods.stages import Diagnosable, Recipe, Results, Stage, Write

__all__ = ["Run", "recipe"]


def recipe(run: Run) -> Recipe:
    """All stages that a config asks for.

    Raises:
        SqlError: questions or databases cannot be used; they are read here, before anything is
            written.
        HubError, TokenizerError, VocabularyError: model folders that cannot be used, or not
            together.
        MissingExtraError: the package `tokenizers` is not installed, for a model folder.
        ValueError: sizes that don't fit, objectives that don't.
    """
    models = Models(run)
    material = Material(run, models)
    stages: list[Stage] = []
    if run.data.path is None:
        stages.append(Write("world", lambda results, path, advance: write_questions(run, path)))
    if learns_teacher(run):
        stages.append(teacher_stage(run, models, material))
    if any(student.source.teacher for student in run.students):
        stages.append(responses_stage(run, models, material))
    if any(reads_states(run, student) for student in run.students):
        stages.append(states_stage(run, models, material))
    stages += [student_stage(run, models, material, student) for student in run.students]
    stages.append(judged_stage(run, models, material))
    first = judged_splits(run.data)[0]
    titles = ["teacher", *(student.title for student in run.students)]
    headline = [f"{JUDGED}/{title}_{first}_execution" for title in titles]
    return Recipe(
        stages,
        partial(report, run, models, material),
        [stage.name for stage in stages],
        headline,
        partial(ready, run, models, material),
        partial(diagnosed, run, models, material),
    )


def diagnosed(
    run: Run, models: Models, material: Material, results: Results, seed: int
) -> Diagnosable:
    """The last student as a model that can be diagnosed.

    Args:
        run: the config.
        models: student and teacher.
        material: questions as texts and arrays.
        results: of all stages.
        seed: its place among the run's.

    Returns:
        A pure function with parameters and data.
    """
    params = last_student(run, results, seed)
    return diagnosable(models.student, params, material.texts(results), run.data)


def last_student(run: Run, results: Results, seed: int) -> Any:
    """Parameters of one seed."""
    learned = results[run.students[-1].title]
    return jax.tree.map(lambda leaf: leaf[seed], learned.params)


def ready(
    run: Run, models: Models, material: Material, results: Results, seed: int
) -> Callable[..., Any]:
    """The last student, as a function.

    Args:
        run: the config.
        models: student and teacher.
        material: questions as texts and arrays.
        results: of all stages.
        seed: its place among the run's.

    Returns:
        (SQLite file, questions) -> queries.
    """
    params = last_student(run, results, seed)
    texts = material.texts(results)
    generate = models.student.language.generate
    assert generate is not None
    program = jax.jit(
        lambda params, ids, mask: generate(
            params, ids, mask, jax.random.key(0), run.data.max_output, 0.0
        )
    )

    def queries(database: str | Path, asked: list[str]) -> list[str]:
        """SQL for each question about a SQLite file."""
        path = Path(database)
        examples = [sql.Example(str(n), path.stem, path, q, "") for n, q in enumerate(asked)]
        ids = encode_prompts(texts.tokenizer, texts.questions.prompts(examples))
        ids = [shortened(row, run.data) for row in ids]
        found = program(params, *padded_left(ids, max(map(len, ids))))
        tokens, lengths = np.asarray(found.tokens), np.asarray(found.lengths)
        rows = [list(row[:length]) for row, length in zip(tokens, lengths, strict=True)]
        ended = [row[:-1] if row and row[-1] in texts.tokenizer.ends else row for row in rows]
        return [text.strip() for text in texts.tokenizer.decode(ended)]

    return queries
