"""Students: speech-text models that begin alike and differ in what they learn from."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmethods.layout import Layout, Rule
from jaxmethods.lsm import grammar
from jaxmethods.lsm.config import SpeechTextRun, StudentConfig, TuneConfig
from jaxmethods.lsm.method import Data, TuneState, language_model_of, tuner
from jaxmethods.lsm.model import Model, Text
from jaxmethods.lsm.recipes.listening import HEARD
from jaxmethods.lsm.recipes.world import (
    SPEECH,
    TRAIN,
    encoder_config,
    material,
    speech_text,
    wordings_of,
)
from jaxmethods.lsm.recipes.writing import GENERATED, WRITER, writer_config
from jaxmethods.lsm.schedules import warmup_then_linear
from jaxmethods.method import Method, made_once
from jaxmethods.models.decoder.network import RULES as DECODER_RULES
from jaxmethods.numerics.keys import named
from jaxmethods.stages import Results, Train

RULES = tuple(Rule(f"language_model/.*{rule.pattern}", rule.spec) for rule in DECODER_RULES)
"""Matrices of the language model and their moments are split; the connector is small."""
PER_SEED = ("^frames$", "^text/", "^weights$", "^language_model/", "^key$")


class Learned(NamedTuple):
    """A student."""

    connector: Any
    language_model: Any
    """With additions at their full strength, where additions train."""
    tokens: jax.Array
    """[] float32: tokens it has learned from."""


def student_stage(run: SpeechTextRun, student: StudentConfig) -> Train:
    """Tunes a student; all begin with the same connector and language model.

    Args:
        run: the config.
        student: one of the run's.

    Returns:
        The stage, with the student's title.
    """
    model = Model(run.connector, writer_config(run))
    inputs = encoder_config(run.speech, run.listener).width

    def result(state: TuneState, data: Data) -> Learned:
        full = student.tune.model_copy(update={"lora_scale": 1.0})
        own = language_model_of(state.trained, data.language_model, full)
        return Learned(state.trained["connector"], own, state.tokens)

    return Train(
        student.title,
        made_once(_tuner, model, student.tune, inputs),
        student.tune.steps,
        lambda results: data_of(run, student, results),
        result=result,
        layout=Layout(RULES, RULES, PER_SEED),
    )


def _tuner(model: Model, config: TuneConfig, inputs: int) -> Method:
    return tuner(model, optimizer_of(config), config, inputs)


def optimizer_of(config: TuneConfig) -> optax.GradientTransformation:
    """AdamW behind a clipped gradient, with the schedule of the published training."""
    rate = warmup_then_linear(config.learning_rate, config.warmup, config.steps, config.warmup_kind)
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(rate, weight_decay=config.weight_decay),
    )


def data_of(run: SpeechTextRun, student: StudentConfig, results: Results) -> Data:
    """Rows of a student, seed by seed: what the language model wrote, and transcripts."""
    spoken = results[SPEECH][TRAIN]
    number = len(spoken.lengths)
    blocks: list[Text] = []
    weights: list[np.ndarray] = []
    for kind, weight in student.generated.model_dump().items():
        if not weight:
            continue
        written = results[GENERATED][kind]
        texts = [speech_text(written.wordings, own, run.new_tokens) for own in written.texts]
        blocks.append(jax.tree.map(lambda *leaves: np.stack(leaves), *texts))
        weights.append(weight * written.kept.astype(np.float32))
    if student.transcripts:
        sentences = material(run.speech).sentences
        answers = [grammar.answer(sentences[n], "transcription") for n in spoken.sentences]
        wordings = wordings_of(run, "transcription", number, student.title)
        text = speech_text(wordings, answers, run.new_tokens)
        blocks.append(jax.tree.map(lambda leaf: np.stack([leaf] * run.seeds), text))
        weights.append(np.full((run.seeds, number), student.transcripts, np.float32))
    everything = np.concatenate(weights, axis=1)
    if not everything.sum(1).all():
        raise ValueError(f"students.{student.title}: no row is left that could be learned from")
    seeds = jnp.arange(run.seeds) + run.seed
    return Data(
        results[HEARD][TRAIN],
        spoken.lengths,
        jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *blocks),
        np.tile(np.arange(number, dtype=np.int32), len(blocks)),  # type: ignore[arg-type]
        everything,  # type: ignore[arg-type]
        results[WRITER],
        jax.vmap(lambda seed: named(jax.random.key(seed), "students"))(seeds),
    )
