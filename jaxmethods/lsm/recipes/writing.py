"""The small language model: it learns the world's text tasks, then writes its own training data.

`generated` asks it about the transcripts of the training clips and keeps its answers as they are.
Nothing there reads a right answer: a manifest with wrong labels would change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxmethods.language.next_token import (
    LearnerState,
    begin,
    next_token_learner,
    random_rows,
)
from jaxmethods.layout import Layout
from jaxmethods.lsm.augmentation import keep_response
from jaxmethods.lsm.config import SpeechTextRun, WriterConfig
from jaxmethods.lsm.grammar import KINDS
from jaxmethods.lsm.prompts import keeps_length
from jaxmethods.lsm.recipes.world import (
    SPEECH,
    TRAIN,
    WORDS,
    for_a_small_model,
    material,
    text_prompts,
    text_tasks,
    wordings_of,
)
from jaxmethods.method import Batch, Method, made_once
from jaxmethods.models import decoder
from jaxmethods.models.decoder.config import DecoderConfig
from jaxmethods.models.decoder.generation import Generated
from jaxmethods.stages import Arrays, Compute, Part, Place, Results, Train

WRITER, GENERATED = "writer", "generated"
LONGEST = 2047
"""The most ids of an answer that is learned from."""


class Written(NamedTuple):
    """Answers of one kind to all training clips."""

    wordings: tuple[str, ...]
    """What was asked, clip by clip."""
    texts: tuple[tuple[str, ...], ...]
    """Answers, [S][N]."""
    kept: np.ndarray
    """[S, N] bool."""


def writer_config(run: SpeechTextRun) -> DecoderConfig:
    """The decoder: a small Llama over the words of the world."""
    own = run.writer
    if own.width % own.heads:
        raise ValueError(f"writer.heads: expected a divisor of width, got {own.heads}")
    return DecoderConfig.llama(len(WORDS.words), own, 512)


def writer_stage(run: SpeechTextRun) -> Train:
    """The language model learns every text task."""
    return Train(
        WRITER,
        made_once(_writer, writer_config(run), run.writer),
        run.writer.steps,
        lambda results: text_tasks(run.speech),
        result=lambda state, batch: state.params,
    )


def _writer(config: DecoderConfig, settings: WriterConfig) -> Method:
    schedule = optax.cosine_onecycle_schedule(settings.steps, settings.learning_rate)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    learner = next_token_learner(config, optimizer, random_rows(settings.batch))

    def init(key: jax.Array, batch: Batch) -> LearnerState:
        del batch
        own, params_key = jax.random.split(key)
        params = decoder.init_params(params_key, config)
        layers = for_a_small_model(params["layers"], config.width)
        return begin(own, params | {"layers": layers}, optimizer)

    return Method(init, learner.step, learner.objective)


def answering(run: SpeechTextRun) -> Any:
    """(parameters [S, ...], prompts [N, P], mask) -> `Generated` [S, N, ...], compiled."""
    config = writer_config(run)

    def one(params: Any, ids: jax.Array, mask: jax.Array) -> Generated:
        return decoder.generate(
            params,
            config,
            ids,
            new_tokens=run.new_tokens,
            mask=mask,
            end=WORDS.end,
            pad=WORDS.pad,
        )

    return jax.jit(jax.vmap(one, (0, None, None)))


def generated_stage(run: SpeechTextRun) -> Compute:
    """The language model answers every kind of instruction about every clip's transcript."""
    kinds = [kind for kind in KINDS if any(getattr(s.generated, kind) for s in run.students)]
    program = answering(run)

    def write(results: Results, place: Place, kind: str) -> Arrays:
        sentences = material(run.speech).sentences
        texts = [sentences[number].text for number in results[SPEECH][TRAIN].sentences]
        wordings = wordings_of(run, kind, len(texts), GENERATED)
        found = program(results[WRITER], *text_prompts(texts, wordings))
        return jax.device_get(place(found, Layout()))._asdict()

    def parts(results: Results, place: Place) -> list[Part]:
        return [Part(kind, partial(write, results, place, kind)) for kind in kinds]

    def finish(found: Sequence[Arrays]) -> dict[str, Written]:
        return {kind: judged(run, kind, one) for kind, one in zip(kinds, found, strict=True)}

    return Compute(GENERATED, parts, finish, partial(counts, run))


def judged(run: SpeechTextRun, kind: str, found: Arrays) -> Written:
    """Answers as texts, and which of them are learned from."""
    tokens, lengths = found["tokens"], found["lengths"]
    texts = tuple(tuple(WORDS.decode(row.tolist()) for row in own) for own in tokens)
    ended = np.take_along_axis(tokens, lengths[..., None] - 1, axis=2)[..., 0] == WORDS.end
    finished = np.asarray([[keep_response(t, run.compat_filter) for t in own] for own in texts])
    long = np.vectorize(lambda n: keeps_length(range(n), run.shortest, LONGEST))(lengths)
    wordings = wordings_of(run, kind, tokens.shape[1], GENERATED)
    return Written(tuple(wordings), texts, ended & finished & long)


def counts(run: SpeechTextRun, written: dict[str, Written]) -> dict[str, Any]:
    """How many rows there are, and how many were dropped, by kind, [seeds]."""
    found: dict[str, Any] = {"rows": np.zeros(run.seeds), "dropped": np.zeros(run.seeds)}
    for kind, own in written.items():
        dropped = (~own.kept).sum(1).astype(float)
        found[f"dropped_{kind}"] = dropped
        found["rows"] = found["rows"] + own.kept.shape[1]
        found["dropped"] = found["dropped"] + dropped
    return found
