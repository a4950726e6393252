"""What students of the small world compute: answers, what they are made from, likeness to text."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmethods.lsm import bias
from jaxmethods.lsm.config import SpeechTextRun
from jaxmethods.lsm.connector import connect
from jaxmethods.lsm.model import Model, Text, assemble, respond
from jaxmethods.lsm.recipes.tuning import Learned
from jaxmethods.lsm.recipes.world import WORDS
from jaxmethods.lsm.recipes.writing import writer_config
from jaxmethods.lsm.transcripts.alignment import Aligned, align
from jaxmethods.models.decoder import lora
from jaxmethods.models.lookup import rows


def speaking(run: SpeechTextRun) -> Any:
    """(students [S, ...], frames [S, N, T, C], lengths, text) -> `Generated` [S, N, ...]."""
    language = writer_config(run)

    def one(student: Learned, frames: jax.Array, lengths: jax.Array, text: Text) -> Any:
        speech = connect(student.connector, run.connector, frames.astype(jnp.float32), lengths)
        return respond(
            student.language_model,
            language,
            speech,
            text,
            new_tokens=run.new_tokens,
            end=WORDS.end,
            pad=WORDS.pad,
        )

    return jax.jit(jax.vmap(one, (0, 0, None, None)))


def at_strength(student: Learned, strength: float) -> Learned:
    """A student with its additions multiplied by a number; without additions as it is."""
    return student._replace(language_model=lora.weakened(student.language_model, strength))


def aligning(run: SpeechTextRun) -> Any:
    """(students [S, ...], frames [S, N, T, C], lengths, words, mask) -> `Aligned` [S, ...]."""

    def one(
        student: Learned, frames: jax.Array, lengths: jax.Array, ids: jax.Array, mask: jax.Array
    ) -> Aligned:
        speech = connect(student.connector, run.connector, frames.astype(jnp.float32), lengths)
        table = student.language_model["embed"]["tokens"]
        return align(speech.tokens, speech.mask, rows(table, ids, "ids"), mask)

    return jax.jit(jax.vmap(one, (0, 0, None, None, None)))


def attributing(run: SpeechTextRun) -> Any:
    """(students [S, ...], frames [S, N, T, C], lengths, text) -> `Attribution` [S, N, ...]."""
    model = Model(run.connector, writer_config(run))

    def one(student: Learned, frames: jax.Array, lengths: jax.Array, text: Text) -> Any:
        speech = connect(student.connector, model.connector, frames.astype(jnp.float32), lengths)
        given = assemble(student.language_model, speech, text)
        sizes = text.prefix.shape[1], speech.mask.shape[1], text.suffix.shape[1]
        segments = bias.segments_of(*sizes, batch=len(frames))
        return bias.attribute_each(student.language_model, model.language_model, given, segments)

    return jax.jit(jax.vmap(one, (0, 0, None, None)))
