"""Students: speech-text models of one Whisper and one language model that begin alike."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.errors import DataError
from jaxmethods.layout import Layout
from jaxmethods.lsm.method import Data, TuneState, tuner
from jaxmethods.lsm.model import IGNORED, Model, Text
from jaxmethods.lsm.prompts import Rendered, padded
from jaxmethods.lsm.recipes.recordings.augmenting import GENERATED, wordings_of
from jaxmethods.lsm.recipes.recordings.config import RecordedStudentConfig
from jaxmethods.lsm.recipes.recordings.hearing import HEARD, Heard
from jaxmethods.lsm.recipes.recordings.models import Models
from jaxmethods.lsm.recipes.recordings.rows import TRAIN, Rows
from jaxmethods.lsm.recipes.tuning import optimizer_of
from jaxmethods.models.decoder.network import RULES
from jaxmethods.numerics.keys import named
from jaxmethods.stages import Results, Train


class Tuned(NamedTuple):
    """A student."""

    trained: Any
    """`connector`, and `language_model` or `adapters` where they train."""
    tokens: jax.Array
    """[] float32: tokens it has learned from."""


class Question(NamedTuple):
    """A row that a student may learn from."""

    clip: int
    """Its recording, among those that are heard."""
    wording: str
    answer: str
    weight: float


def student_stage(models: Models, rows: Rows, student: RecordedStudentConfig) -> Train:
    """Tunes a student; all begin with the same connector and language model.

    Args:
        models: encoder and language model.
        rows: what is said in the recordings.
        student: one of the run's.

    Returns:
        The stage, with the student's title.
    """
    method = tuner(
        Model(models.run.connector, models.language),
        optimizer_of(student.tune),
        student.tune,
        models.encoder.width,
    )

    def result(state: TuneState, data: Data) -> Tuned:
        del data
        return Tuned(state.trained, state.tokens)

    return Train(
        student.title,
        method,
        student.tune.steps,
        lambda results: data_of(models, rows, student, results),
        result=result,
        layout=Layout(state=RULES, batch=RULES, per_seed=("^key$",)),
    )


def data_of(models: Models, rows: Rows, student: RecordedStudentConfig, results: Results) -> Data:
    """What a student is fed.

    Args:
        models: encoder and language model.
        rows: what is said in the recordings.
        student: one of the run's.
        results: of the stages before.

    Returns:
        Frames, rows around them, and where the language model begins.

    Raises:
        DataError: no row is left.
    """
    heard: Heard = results[HEARD][TRAIN]
    pairs = [
        (one, models.row(one.wording, one.answer))
        for one in questions_of(models, rows, student, results)
    ]
    pairs = [(one, row) for one, row in pairs if fits(models, row)]
    questions, rendered = [one for one, _ in pairs], [row for _, row in pairs]
    if not questions:
        raise DataError(f"students.{student.title}: no row is left that could be learned from")
    seeds = jnp.arange(models.run.seeds) + models.run.seed
    return Data(
        heard.frames,  # type: ignore[arg-type]
        heard.lengths,  # type: ignore[arg-type]
        text_of(rendered, models.end),
        np.asarray([one.clip for one in questions], np.int32),  # type: ignore[arg-type]
        np.asarray([one.weight for one in questions], np.float32),  # type: ignore[arg-type]
        models.read_language(student.tune),
        jax.vmap(lambda seed: named(jax.random.key(seed), "students"))(seeds),
    )


def questions_of(
    models: Models, rows: Rows, student: RecordedStudentConfig, results: Results
) -> list[Question]:
    """All rows of a student: what the language model wrote, and transcripts.

    Args:
        models: encoder and language model.
        rows: what is said in the recordings.
        student: one of the run's.
        results: of the stages before.

    Returns:
        Questions with their answers and weights.
    """
    found = []
    for kind, weight in student.generated.model_dump().items():
        if not weight:
            continue
        own = results[GENERATED][kind]
        found += [
            Question(clip, own.wordings[clip], own.texts[clip], weight)
            for clip in np.flatnonzero(own.kept).tolist()
        ]
    if student.transcripts:
        numbers = results[HEARD][TRAIN].rows
        wordings = wordings_of(models, "transcription", len(numbers), "transcripts")
        found += [
            Question(clip, wording, rows.splits[TRAIN][number].text, student.transcripts)
            for clip, (number, wording) in enumerate(zip(numbers, wordings, strict=True))
        ]
    return found


def fits(models: Models, row: Rendered) -> bool:
    """Whether an answer may be learned from: a transcript may be longer than answers are."""
    config = models.run.augment
    answered = sum(label != IGNORED for label in row.labels)
    room = len(models.tag()) + max(config.new_tokens + 1, models.run.judging.new_tokens)
    return config.shortest <= answered <= config.longest and len(row.suffix) <= room


def dropped(models: Models, rows: Rows, results: Results) -> dict[str, Counter[str]]:
    """Student -> rows that are too short or too long for it, by the kind of rows."""
    found = {}
    for student in models.run.students:
        own = questions_of(models, rows, student, results)
        lost = sum(not fits(models, models.row(one.wording, one.answer)) for one in own)
        found[student.title] = Counter({"rows": len(own), "dropped": lost})
    return found


def text_of(rows: list[Rendered], pad: int) -> Text:
    """Rows around speech as arrays."""
    sizes = [max(len(row.prefix) for row in rows), max(len(row.suffix) for row in rows)]
    prefix, prefix_mask = padded([row.prefix for row in rows], pad, sizes[0])
    suffix, suffix_mask = padded([row.suffix for row in rows], pad, sizes[1])
    labels, _ = padded([row.labels for row in rows], IGNORED, sizes[1])
    return Text(prefix, prefix_mask, suffix, suffix_mask, labels)  # type: ignore[arg-type]
