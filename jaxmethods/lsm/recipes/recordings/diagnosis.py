"""The last student of a user's recordings as a model that can be diagnosed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.errors import DataError
from jaxmethods.lsm.method import language_model_of
from jaxmethods.lsm.model import Model
from jaxmethods.lsm.recipes.diagnosis import ROWS, examples, suffix_logits
from jaxmethods.lsm.recipes.recordings.augmenting import wordings_of
from jaxmethods.lsm.recipes.recordings.config import RecordedStudentConfig
from jaxmethods.lsm.recipes.recordings.hearing import HEARD, Heard
from jaxmethods.lsm.recipes.recordings.models import Models
from jaxmethods.lsm.recipes.recordings.rows import JUDGED, Rows
from jaxmethods.lsm.recipes.recordings.tuning import Question, data_of, fits, text_of
from jaxmethods.stages import Diagnosable, Results


def diagnosed(models: Models, rows: Rows, results: Results, seed: int) -> Diagnosable:
    """Connector and language model, on rows that the student learned from and on judged ones.

    Args:
        models: of the run.
        rows: what is said in the recordings.
        results: of all stages.
        seed: its place among the run's.

    Returns:
        Inputs are the encoder's frames and the text around them, outputs logits of the suffix
        [N, R, V], targets its labels. Held-out rows have the manifest's answers to what the student
        was taught, or, where it has none of them, transcripts.

    Raises:
        DataError: no judged row fits.
    """
    student = models.run.students[-1]
    own = jax.tree.map(lambda leaf: jnp.asarray(leaf[seed]), results[student.title].trained)
    base = {} if student.tune.trains == "all" else models.read_language()
    language = language_model_of(own, base, student.tune)
    params = {"connector": own["connector"], "language_model": language}
    data = data_of(models, rows, student, results)
    learned = np.flatnonzero(np.asarray(data.weights) > 0)
    learned = learned[np.linspace(0, len(learned) - 1, min(ROWS, len(learned))).astype(int)]
    text = jax.tree.map(lambda leaf: leaf[learned], data.text)
    train = examples(data.frames, data.lengths, np.asarray(data.clips)[learned], text)
    return Diagnosable(
        "a student of recordings",
        suffix_logits(Model(models.run.connector, models.language)),
        params,
        "cross_entropy",
        train,
        _judged(models, rows, student, results[HEARD][JUDGED]),
    )


def _judged(models: Models, rows: Rows, student: RecordedStudentConfig, heard: Heard) -> Any:
    """Rows about recordings that the student has not heard, with right answers."""
    said = [rows.splits[JUDGED][number] for number in heard.rows]
    kinds = [kind for kind, weight in student.generated.model_dump().items() if weight]
    kinds += ["transcription"] if student.transcripts else []

    def questions(kind: str) -> list[Question]:
        answers = [row.text if kind == "transcription" else row.answer(kind) for row in said]
        pairs = zip(wordings_of(models, kind, len(said), JUDGED), answers, strict=True)
        return [
            Question(clip, wording, answer, 1.0)
            for clip, (wording, answer) in enumerate(pairs)
            if answer is not None
        ]

    found = [one for kind in kinds for one in questions(kind)] or questions("transcription")
    rendered = [(one.clip, models.row(one.wording, one.answer)) for one in found]
    kept = [(clip, row) for clip, row in rendered if fits(models, row)][:ROWS]
    if not kept:
        raise DataError(f"students.{student.title}: no judged recording has an answer that fits")
    clips = np.asarray([clip for clip, _ in kept])
    text = text_of([row for _, row in kept], models.end)
    return examples(heard.frames, heard.lengths, clips, text)
