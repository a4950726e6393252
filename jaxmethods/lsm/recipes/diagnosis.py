"""The last student as a model that can be diagnosed: clips, what is asked, and what is answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.lsm import grammar
from jaxmethods.lsm.config import SpeechTextRun, StudentConfig
from jaxmethods.lsm.connector import connect
from jaxmethods.lsm.model import Model, Text, assemble, response_logits
from jaxmethods.lsm.recipes.listening import HEARD
from jaxmethods.lsm.recipes.tuning import data_of
from jaxmethods.lsm.recipes.world import (
    SAME,
    SPEECH,
    TRAIN,
    material,
    speech_text,
    wordings_of,
)
from jaxmethods.lsm.recipes.writing import writer_config
from jaxmethods.stages import Diagnosable, Results

ROWS = 128
"""Rows of either set."""


def diagnosed(run: SpeechTextRun, results: Results, seed: int) -> Diagnosable:
    """Connector and language model on rows that the student learned from, and on unheard clips.

    Args:
        run: the config.
        results: of all stages.
        seed: its place among the run's.

    Returns:
        Inputs are the encoder's frames and the text around them; outputs are logits of the
        suffix [N, R, V], targets its labels. Held-out rows have the right answers to what the
        student was taught, about clips of the voice that it knows.
    """
    student, config = run.students[-1], writer_config(run)
    apply = suffix_logits(Model(run.connector, config))
    own = jax.tree.map(lambda leaf: jnp.asarray(leaf[seed]), results[student.title])
    params = {"connector": own.connector, "language_model": own.language_model}
    data = data_of(run, student, results)
    learned = np.flatnonzero(np.asarray(data.weights[seed]) > 0)
    learned = learned[np.linspace(0, len(learned) - 1, min(ROWS, len(learned))).astype(int)]
    text = jax.tree.map(lambda leaf: leaf[seed][learned], data.text)
    clips = np.asarray(data.clips)[learned]
    train = _examples(results, TRAIN, seed, clips, text)
    title = "a student of speech and text"
    held_out = _unheard(run, student, results, seed)
    return Diagnosable(title, apply, params, "cross_entropy", train, held_out)


def _unheard(run: SpeechTextRun, student: StudentConfig, results: Results, seed: int) -> Any:
    """Rows of every kind that a student was taught, about judged clips."""
    weights = student.generated.model_dump()
    kinds = [kind for kind, weight in weights.items() if weight]
    kinds += ["transcription"] if student.transcripts else []
    spoken, known = results[SPEECH][SAME], material(run.speech).sentences
    number = min(len(spoken.lengths), max(ROWS // len(kinds), 1))
    sentences = [known[place] for place in spoken.sentences[:number]]
    texts = [
        speech_text(
            wordings_of(run, kind, number, SAME),
            [grammar.answer(sentence, kind) for sentence in sentences],
            run.new_tokens,
        )
        for kind in kinds
    ]
    text = jax.tree.map(lambda *leaves: np.concatenate(leaves), *texts)
    return _examples(results, SAME, seed, np.tile(np.arange(number), len(kinds)), text)


def _examples(results: Results, split: str, seed: int, clips: np.ndarray, text: Text) -> Any:
    """Inputs and targets of rows about clips of a split."""
    frames = np.asarray(results[HEARD][split])[seed]
    return examples(frames, np.asarray(results[SPEECH][split].lengths), clips, text)


def examples(frames: Any, lengths: Any, clips: np.ndarray, text: Text) -> Any:
    """Inputs and targets of a speech-text model.

    Args:
        frames: [C, T, D] of the encoder.
        lengths: [C].
        clips: [N], the clip of each row.
        text: [N, ...], what stands around it.

    Returns:
        Inputs for `suffix_logits` and labels [N, R].
    """
    around = text._asdict()
    labels = around.pop("labels")
    frames, lengths = np.asarray(frames)[clips], np.asarray(lengths)[clips]
    return {"frames": frames, "lengths": lengths, "text": around}, labels


def suffix_logits(model: Model) -> Callable[[Any, dict[str, Any]], jax.Array]:
    """A speech-text model as a function of `connector` and `language_model`, and of `examples`."""

    def apply(params: Any, inputs: dict[str, Any]) -> jax.Array:
        """Logits of the suffix, [N, R, V]."""
        frames, text = inputs["frames"].astype(jnp.float32), inputs["text"]
        whole = Text(**text, labels=jnp.zeros_like(text["suffix"]))
        speech = connect(params["connector"], model.connector, frames, inputs["lengths"])
        rows = assemble(params["language_model"], speech, whole)
        config = model.language_model
        return response_logits(params["language_model"], config, rows, whole.suffix.shape[1])

    return apply
