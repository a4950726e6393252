"""`method: lsm_recordings` on the command line: your recordings, your Whisper, your language model.

The stages: every recording is heard once (`heard`), the language model answers instructions about
the transcripts (`generated`), every student is tuned under its title, and all are judged
(`judgment`) beside a cascade of Whisper and the language model. Every stage goes on where it was
stopped.

Yu et al., "Self-Powered LLM Modality Expansion for Large Speech-Text Models", EMNLP 2024,
arXiv 2410.03798.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.data import audio
from jaxmethods.errors import UserError, import_extra
from jaxmethods.lsm.recipes.recordings.asking import Programs, texts_of
from jaxmethods.lsm.recipes.recordings.augmenting import GENERATED, generated_stage
from jaxmethods.lsm.recipes.recordings.config import RecordingsRun as Run
from jaxmethods.lsm.recipes.recordings.diagnosis import diagnosed
from jaxmethods.lsm.recipes.recordings.hearing import HEARD, encoded, heard_stage
from jaxmethods.lsm.recipes.recordings.judging import STAGE, judged_stage
from jaxmethods.lsm.recipes.recordings.models import Models, speech_tokens
from jaxmethods.lsm.recipes.recordings.report import report
from jaxmethods.lsm.recipes.recordings.rows import JUDGED, read_rows
from jaxmethods.lsm.recipes.recordings.tuning import student_stage, text_of
from jaxmethods.stages import Recipe, Results, Stage

__all__ = ["Run", "recipe"]


def recipe(run: Run) -> Recipe:
    """All stages that a config asks for.

    Raises:
        HubError, TokenizerError: a model that can't be used.
        DataError: a manifest or wordings that can't be used.
        UserError: an instruction that is longer than the language model's context.
        MissingExtraError: a package that is needed and not installed.
        ValueError: a student that learns from nothing.
    """
    for student in run.students:
        if student.transcripts + sum(student.generated.model_dump().values()) <= 0:
            raise ValueError(
                f"students: {student.title}: expected a weight of transcripts or generated above "
                "0, got none"
            )
    models, rows = Models(run), read_rows(run.data)
    models.check_lengths()
    asked = run.judging.kinds
    if "translation" in asked and any(row.answer("translation") for row in rows.splits[JUDGED]):
        import_extra("sacrebleu", "speech")
    stages: list[Stage] = [heard_stage(models, rows)]
    reads = [HEARD, STAGE]
    if models.generated_kinds():
        stages.append(generated_stage(models, rows))
        reads.append(GENERATED)
    stages += [student_stage(models, rows, student) for student in run.students]
    stages.append(judged_stage(models, rows))
    headline = [
        f"{STAGE}/{student.title}_{name}" for name in ("copy", "follow") for student in run.students
    ]
    return Recipe(
        stages,
        partial(report, models, rows),
        reads,
        headline,
        partial(ready, models),
        partial(diagnosed, models, rows),
    )


def ready(models: Models, results: Results, seed: int) -> Callable[..., Any]:
    """The last student, as a function.

    Args:
        models: of the run.
        results: of all stages.
        seed: its place among the run's.

    Returns:
        (samples, instruction) -> answer.
    """
    student = models.run.students[-1]
    program = Programs(models, student).speech
    trained = jax.tree.map(lambda leaf: leaf[seed : seed + 1], results[student.title].trained)
    base = {} if student.tune.trains == "all" else models.read_language()
    strength = jnp.float32(student.tune.lora_scale)

    def respond(wave: np.ndarray, instruction: str) -> str:
        """The answer to an instruction about samples [n] at 16 kHz.

        Raises:
            UserError: they are longer than the language model's context.
        """
        clips, samples = audio.pieces(wave, models.encoder.features.n_samples)
        frames, lengths = encoded(models, clips, samples)
        padded = np.zeros((1, len(clips) * models.encoder.positions, frames.shape[1]), np.float16)
        padded[0, : len(frames)] = frames
        row = models.row(instruction, "")
        tag = len(models.tag())
        row = row._replace(suffix=row.suffix[:tag], labels=row.labels[:tag])
        speech = speech_tokens(models.run.connector, padded.shape[1])
        needed = len(row.prefix) + speech + tag + models.run.judging.new_tokens
        if needed > models.language.max_positions:
            raise UserError(
                f"instruction {instruction[:60]!r}: {len(row.prefix)} tokens, {speech} of speech "
                f"and an answer are more than the {models.language.max_positions} positions of the "
                "language model"
            )
        text = text_of([row], models.end)
        count = np.asarray([sum(lengths)], np.int32)
        found = jax.device_get(program(trained, base, padded, count, text, strength))
        return texts_of(models, found._asdict())[0][0]

    return respond
