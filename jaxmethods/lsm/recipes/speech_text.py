"""`method: lsm` on the command line: a world is spoken, heard, written about, and tuned on.

The stages: all clips are said and turned into features (`speech`), a small encoder learns sounds
(`listener`) and hears every clip once (`heard`), a small language model learns text tasks
(`writer`) and writes its own answers about the transcripts (`generated`), every student is tuned
under its title, and all are judged (`judged`).

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

from jaxmethods.data.audio import pad_or_trim, to_int16
from jaxmethods.data.log_mel import frame_lengths, log_mel
from jaxmethods.lsm.config import SpeechTextRun as Run
from jaxmethods.lsm.recipes.asking import at_strength, speaking
from jaxmethods.lsm.recipes.diagnosis import diagnosed
from jaxmethods.lsm.recipes.judging import STAGE, judged_stage
from jaxmethods.lsm.recipes.listening import LISTENER, heard_stage, listener_stage
from jaxmethods.lsm.recipes.report import report
from jaxmethods.lsm.recipes.tuning import student_stage
from jaxmethods.lsm.recipes.world import (
    SAME,
    SPEECH,
    WORDS,
    asked_text,
    encoder_config,
    speech_stage,
)
from jaxmethods.lsm.recipes.writing import GENERATED, generated_stage, writer_stage
from jaxmethods.models.whisper.encoder import encode
from jaxmethods.stages import Recipe, Results, Stage

__all__ = ["Run", "recipe"]


def recipe(run: Run) -> Recipe:
    """All stages that a config asks for.

    Raises:
        ValueError: sizes that don't fit, or a student that learns from nothing.
    """
    for student in run.students:
        if student.transcripts + sum(student.generated.model_dump().values()) <= 0:
            raise ValueError(
                f"students: {student.title}: expected a weight of transcripts or generated above "
                "0, got none"
            )
    stages: list[Stage] = [
        speech_stage(run),
        listener_stage(run),
        heard_stage(run),
        writer_stage(run),
    ]
    reads = [SPEECH, STAGE]
    if any(sum(student.generated.model_dump().values()) for student in run.students):
        stages.append(generated_stage(run))
        reads.append(GENERATED)
    stages += [student_stage(run, student) for student in run.students]
    stages.append(judged_stage(run))
    headline = [
        f"{STAGE}/{student.title}_{SAME}_{name}"
        for name in ("copy", "follow")
        for student in run.students
    ]
    return Recipe(
        stages, partial(report, run), reads, headline, partial(ready, run), partial(diagnosed, run)
    )


def ready(run: Run, results: Results, seed: int) -> Callable[..., Any]:
    """The last student, as a function.

    Args:
        run: the config.
        results: of all stages.
        seed: its place among the run's.

    Returns:
        (samples, instruction) -> answer.
    """
    config = encoder_config(run.speech, run.listener)
    answer = speaking(run)
    last = run.students[-1]
    own = (results[LISTENER], at_strength(results[last.title], last.tune.lora_scale))
    encoder, student = jax.tree.map(lambda leaf: leaf[seed : seed + 1], own)

    @jax.jit
    def hear(params: Any, clip: jax.Array) -> jax.Array:
        features = log_mel(clip[None], config.features)
        return jax.vmap(lambda own: encode(own, config, features).last)(params)

    def respond(wave: np.ndarray, instruction: str) -> str:
        """The answer to an instruction of the world's words about samples [n] at 16 kHz."""
        clip, samples = pad_or_trim(wave, config.features.n_samples)
        frames = hear(encoder, jnp.asarray(to_int16(clip)))
        lengths = frame_lengths(np.asarray([samples]), config.features)[1]
        found = answer(student, frames, lengths, asked_text([instruction]))
        return WORDS.decode(np.asarray(found.tokens)[0, 0].tolist())

    return respond
