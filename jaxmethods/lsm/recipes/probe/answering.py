"""A small speech-text model that is asked what a clip is and answers with its label, in words.

Connector and language model are trained from nothing behind the frozen encoder, once on all clips
of training and once without each group, which is judged then. The stages share one program: what is
left out has weight 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.lsm.config import AnswererConfig, TuneConfig
from jaxmethods.lsm.config import ProbeRun as Run
from jaxmethods.lsm.connector import connect
from jaxmethods.lsm.grammar import BEGIN, END, PAD, Vocabulary
from jaxmethods.lsm.method import Data, TuneState, tuner
from jaxmethods.lsm.model import IGNORED, Model, Text, respond
from jaxmethods.lsm.prompts import padded
from jaxmethods.lsm.recipes.probe import material
from jaxmethods.lsm.recipes.probe.linear import TESTED, Split, classes_of, splits_of
from jaxmethods.lsm.recipes.probe.material import Clip, Heard
from jaxmethods.lsm.recipes.tuning import optimizer_of
from jaxmethods.lsm.recipes.world import for_a_small_model
from jaxmethods.method import Method
from jaxmethods.models import decoder
from jaxmethods.models.decoder.config import DecoderConfig
from jaxmethods.models.whisper.config import EncoderConfig
from jaxmethods.numerics.keys import named
from jaxmethods.stages import Arrays, Compute, Part, Place, Results, Stage, Train

STAGE = "answered"
ASK, TAG = f"{BEGIN} what is this :", "answer :"
LANGUAGE_POSITIONS = 2048


class Answers(NamedTuple):
    """What was answered about the judged clips."""

    right: dict[str, np.ndarray]
    """Split -> [S, n] bool."""


def words_of(clips: Sequence[Clip]) -> Vocabulary:
    """The words of question and labels; underscores of labels are spaces."""
    texts = [ASK, TAG, *map(spoken, classes_of(clips))]
    words = [word for text in texts for word in text.split()]
    return Vocabulary(tuple(dict.fromkeys([PAD, BEGIN, END, *words])))


def spoken(label: str) -> str:
    """A label in words."""
    return " ".join(label.replace("_", " ").split())


def stages(
    run: Run, config: AnswererConfig, clips: Sequence[Clip], encoder: EncoderConfig
) -> list[Stage]:
    """Training on all groups and without each, and the judging of all.

    Args:
        run: the config.
        config: of the answerer.
        clips: of both manifests.
        encoder: sizes of what hears.

    Returns:
        Training stages named `answerer` and `answerer_without_GROUP`, then `answered`.

    Raises:
        ValueError: sizes that don't fit, or weights that shall not train.
    """
    if config.width % config.heads:
        raise ValueError(f"answerer.heads: expected a divisor of width, got {config.heads}")
    if config.tune.trains != "all":
        raise ValueError(f"answerer.tune.trains: expected all, got {config.tune.trains}")
    words = words_of(clips)
    model = model_of(config, words)
    method = answerer(model, config.tune, encoder.width)
    titles = {split.title: stage_name(split.title) for split in splits_of(run, clips)}

    def data(results: Results, title: str) -> Data:
        heard: Heard = results[material.STAGE]
        split = next(one for one in splits_of(run, heard.clips) if one.title == title)
        return data_of(heard, split, words)

    trained: list[Stage] = [
        Train(
            name,
            method,
            config.tune.steps,
            partial(data, title=title),
            result=lambda state, batch: state.trained,
        )
        for title, name in titles.items()
    ]
    return [*trained, answered_stage(run, model, words, titles)]


def model_of(config: AnswererConfig, words: Vocabulary) -> Model:
    """Sizes of connector and language model."""
    language = DecoderConfig.llama(len(words.words), config, LANGUAGE_POSITIONS)
    return Model(config.connector, language)


def stage_name(title: str) -> str:
    """The stage that trains for a split."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", title)
    return "answerer" if title == TESTED else f"answerer_without_{plain}"


def answerer(model: Model, config: TuneConfig, inputs: int) -> Method:
    """Makes the tuning of a speech-text model whose language model begins from nothing.

    Args:
        model: sizes of connector and language model.
        config: rows of a step, its rate.
        inputs: the encoder's width.

    Returns:
        A method on `TuneState` and `Data`, whose `language_model` is empty.
    """
    optimizer = optimizer_of(config)
    method = tuner(model, optimizer, config, inputs)

    def init(key: jax.Array, data: Data) -> TuneState:
        state = method.init(key, data)
        language = decoder.init_params(named(key, "language_model"), model.language_model)
        layers = for_a_small_model(language["layers"], model.language_model.width)
        trained = state.trained | {"language_model": language | {"layers": layers}}
        return state._replace(trained=trained, optimizer=optimizer.init(trained))

    return Method(init, method.step, method.objective)


def data_of(heard: Heard, split: Split, words: Vocabulary) -> Data:
    """Rows of all clips, of which those that are learned from have a weight."""
    longest = max(map(len, heard.frames))
    frames = [np.pad(one, ((0, longest - len(one)), (0, 0))) for one in heard.frames]
    number = len(frames)
    weights = np.zeros(number, np.float32)
    weights[split.train] = 1
    return Data(
        np.stack(frames),  # type: ignore[arg-type]
        np.asarray([len(one) for one in heard.frames], np.int32),  # type: ignore[arg-type]
        asked(words, [spoken(one.label) for one in heard.clips]),
        np.arange(number, dtype=np.int32),  # type: ignore[arg-type]
        weights,  # type: ignore[arg-type]
        {},
    )


def asked(words: Vocabulary, answers: Sequence[str]) -> Text:
    """Rows that ask what a clip is, with their answers."""
    number, tag = len(answers), words.encode(TAG)
    rows = [words.encode(f"{text} {END}") for text in answers]
    size = max(map(len, rows))
    prefix = np.tile(np.asarray(words.encode(ASK), np.int32), (number, 1))
    suffix, mask = padded([tag + row for row in rows], words.pad, len(tag) + size)
    labels, _ = padded([[IGNORED] * len(tag) + row for row in rows], IGNORED, len(tag) + size)
    return Text(prefix, np.ones_like(prefix, bool), suffix, mask, labels)  # type: ignore[arg-type]


def answered_stage(run: Run, model: Model, words: Vocabulary, titles: dict[str, str]) -> Compute:
    """Every answerer is asked about the clips that it has not learned from.

    Args:
        run: the config.
        model: sizes of connector and language model.
        words: of question and labels.
        titles: splits to the stages that trained for them.

    Returns:
        The stage.
    """
    tag = len(words.encode(TAG))

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None, None, None))
    def answer(trained: Any, frames: jax.Array, lengths: jax.Array, text: Text) -> jax.Array:
        speech = connect(trained["connector"], model.connector, frames.astype(jnp.float32), lengths)
        return respond(
            trained["language_model"],
            model.language_model,
            speech,
            text._replace(
                suffix=text.suffix[:, :tag],
                suffix_mask=text.suffix_mask[:, :tag],
                labels=text.labels[:, :tag],
            ),
            new_tokens=text.suffix.shape[1] - tag,
            end=words.end,
            pad=words.pad,
        ).tokens

    def judge(results: Results, title: str) -> Arrays:
        heard: Heard = results[material.STAGE]
        split = next(one for one in splits_of(run, heard.clips) if one.title == title)
        data = data_of(heard, split, words)
        own = split.judged
        text = jax.tree.map(lambda leaf: leaf[own], data.text)
        found = answer(results[titles[title]], data.frames[own], data.lengths[own], text)
        tokens = np.asarray(jax.device_get(found))  # [S, n, new]
        labels = [spoken(heard.clips[place].label) for place in own]
        said = [[words.decode(row.tolist()) for row in seed] for seed in tokens]
        return {"right": np.asarray(said) == np.asarray(labels)}

    def parts(results: Results, place: Place) -> list[Part]:
        del place
        return [
            Part(f"{number:02d}", partial(judge, results, title))
            for number, title in enumerate(titles)
        ]

    def finish(found: Sequence[Arrays]) -> Answers:
        return Answers({title: one["right"] for title, one in zip(titles, found, strict=True)})

    return Compute(STAGE, parts, finish, metrics)


def metrics(answers: Answers) -> dict[str, Any]:
    """Shares of right answers, [seeds]."""
    found: dict[str, Any] = {"accuracy": answers.right[TESTED].mean(1)}
    groups = [right.mean(1) for title, right in answers.right.items() if title != TESTED]
    if groups:
        found |= {"left_out": np.mean(groups, axis=0), "left_out_lowest": np.min(groups, axis=0)}
    return found
