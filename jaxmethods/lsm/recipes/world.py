"""The synthesized world as arrays: clips that are heard, rows that are asked and answered."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.data.audio import pad_or_trim, to_int16
from jaxmethods.data.log_mel import LogMelConfig, frame_lengths, log_mel
from jaxmethods.language.next_token import Tokens
from jaxmethods.layout import path_name
from jaxmethods.lsm import grammar, synthesizer
from jaxmethods.lsm.config import ListenerConfig, SpeechTextRun, SpokenConfig
from jaxmethods.lsm.grammar import KINDS, TEMPLATE, Sentence
from jaxmethods.lsm.model import IGNORED, Text
from jaxmethods.lsm.prompts import padded, render
from jaxmethods.models.decoder.layer import Params
from jaxmethods.models.whisper.config import EncoderConfig
from jaxmethods.stages import Arrays, Compute, Part, Place, Results

SPEECH = "speech"
TRAIN, SAME, UNSEEN = "train", "same_voices", "unseen_voices"
SPLITS = (TRAIN, SAME, UNSEEN)
JUDGED = (SAME, UNSEEN)
NOISE_DB = (30.0, 20.0, 12.0)
USUAL_DEVIATION = 0.02
PER_POSITION = 320
"""Samples of an encoder position."""
AT_ONCE = 48
"""Clips whose features are computed at once."""
WORDS = grammar.vocabulary()


class Spoken(NamedTuple):
    """Clips of one split."""

    features: np.ndarray
    """[N, M, F] float16 log-mel."""
    lengths: np.ndarray
    """[N] int32: encoder frames."""
    sounds: np.ndarray
    """[N, T] int32: which sound each encoder position is a part of; silence behind the end."""
    sentences: np.ndarray
    """[N] int32: which sentence, of `Material.sentences`."""
    waves: np.ndarray
    """[W, n] int16: the first of the clips, to listen to."""


class Material(NamedTuple):
    """What is said where."""

    sentences: tuple[Sentence, ...]
    """All; those that training hears first."""
    heard: int
    """How many are heard in training."""


def material(speech: SpokenConfig) -> Material:
    """All sentences, those of training first."""
    return _material(speech.seed, speech.held_back)


@lru_cache(maxsize=4)
def _material(seed: int, held_back: float) -> Material:
    heard, others = grammar.split_sentences(seed, held_back)
    return Material((*heard, *others), len(heard))


def for_a_small_model(params: Params, width: int) -> Params:
    """New parameters with kernels from N(0, 1 / width) in place of the usual N(0, 0.02^2), which is
    that of models with widths of thousands: a small one would learn nothing for hundreds of steps.
    """

    def scaled(path: Any, leaf: jax.Array) -> jax.Array:
        kernel = path_name(path).endswith("kernel")
        return leaf * (width**-0.5 / USUAL_DEVIATION) if kernel else leaf

    return jax.tree_util.tree_map_with_path(scaled, params)


def encoder_config(speech: SpokenConfig, listener: ListenerConfig) -> EncoderConfig:
    """The small encoder's sizes; a position is 20 ms."""
    return EncoderConfig(
        n_mels=listener.n_mels,
        width=listener.width,
        layers=listener.layers,
        heads=listener.heads,
        mlp_width=listener.mlp_width,
        positions=round(speech.seconds * 50),
    )


def speech_stage(run: SpeechTextRun) -> Compute:
    """Says and hears everything: features of all clips."""
    config = encoder_config(run.speech, run.listener).features
    parts = [Part(split, partial(say, run, split, config)) for split in SPLITS]

    def finish(found: Sequence[Arrays]) -> dict[str, Spoken]:
        return {split: Spoken(**part) for split, part in zip(SPLITS, found, strict=True)}

    def plan(results: Results, place: Place) -> list[Part]:
        del results, place
        return parts

    return Compute(SPEECH, plan, finish)


def say(run: SpeechTextRun, split: str, config: LogMelConfig) -> Arrays:
    """The clips of a split.

    Args:
        run: the config.
        split: of `SPLITS`.
        config: of the features.

    Returns:
        The fields of `Spoken`.

    Raises:
        ValueError: a clip is longer than the window.
    """
    rng = np.random.default_rng([run.speech.seed, SPLITS.index(split)])
    known = material(run.speech)
    first, last = (0, known.heard) if split == TRAIN else (known.heard, len(known.sentences))
    number = run.speech.train if split == TRAIN else run.speech.judged
    chosen = first + np.arange(number) % (last - first)
    voices = synthesizer.UNSEEN if split == UNSEEN else synthesizer.TRAINED
    clips, lengths, sounds = [], [], []
    positions = config.n_samples // PER_POSITION
    for sentence in chosen:
        noise = rng.choice(NOISE_DB) if rng.random() < run.speech.noisy else None
        voice = voices[rng.integers(len(voices))]
        wave, said = synthesizer.speak(known.sentences[sentence].text, voice, rng, noise)
        if len(wave) > config.n_samples:
            raise ValueError(
                f"speech.seconds: expected at least {len(wave) / config.rate:.2f}, which a clip "
                f"lasts, got {run.speech.seconds}"
            )
        clips.append(to_int16(pad_or_trim(wave, config.n_samples)[0]))
        lengths.append(len(wave))
        middles = said[1 :: PER_POSITION // synthesizer.HOP][:positions]
        silence = synthesizer.SYMBOLS.index(" ")
        sounds.append(np.pad(middles, (0, positions - len(middles)), constant_values=silence))
    waves = np.stack(clips)
    return {
        "features": features_of(waves, config),
        "lengths": np.asarray(frame_lengths(np.asarray(lengths), config)[1]),
        "sounds": np.stack(sounds),
        "sentences": chosen.astype(np.int32),
        "waves": waves[: run.listened],
    }


def features_of(waves: np.ndarray, config: LogMelConfig) -> np.ndarray:
    """[N, n] int16 -> log-mel [N, M, F] float16, some clips at a time."""
    found = []
    for start in range(0, len(waves), AT_ONCE):
        own = waves[start : start + AT_ONCE]
        full = np.pad(own, ((0, AT_ONCE - len(own)), (0, 0)))
        features = np.asarray(log_mel(jnp.asarray(full), config))
        found.append(features[: len(own)].astype(np.float16))
    return np.concatenate(found)


def text_tasks(speech: SpokenConfig) -> Tokens:
    """Every sentence under every wording with its right answer, as the language model learns it."""
    return _text_tasks(material(speech).sentences)


@lru_cache(maxsize=4)
def _text_tasks(sentences: tuple[Sentence, ...]) -> Tokens:
    rows, answers = [], []
    for sentence in sentences:
        for kind, wordings in KINDS.items():
            for wording in wordings:
                prompt = WORDS.encode(TEMPLATE.render_text_prompt(wording, sentence.text))
                said = WORDS.encode(f"{grammar.answer(sentence, kind)} {grammar.END}")
                rows.append(prompt + said)
                answers.append(len(said))
    ids, there = padded(rows, WORDS.pad, max(map(len, rows)))
    ends = np.asarray([len(row) for row in rows])
    learned = np.arange(ids.shape[1]) >= (ends - np.asarray(answers))[:, None]
    return Tokens(ids, there & learned)  # type: ignore[arg-type]


def text_prompts(texts: Sequence[str], wordings: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Questions about transcripts, [N, P] and their mask."""
    rendered = [
        WORDS.encode(TEMPLATE.render_text_prompt(wording, text))
        for text, wording in zip(texts, wordings, strict=True)
    ]
    return padded(rendered, WORDS.pad, longest_prompt())


@lru_cache(maxsize=1)
def longest_prompt() -> int:
    """Tokens of the longest question about a transcript."""
    said = max(len(one.text.split()) for one in grammar.sentences())
    asked = max(len(wording.split()) for pair in KINDS.values() for wording in pair)
    return said + asked + len(TEMPLATE.text_prompt.split()) - 2


def speech_text(wordings: Sequence[str], responses: Sequence[str], new_tokens: int) -> Text:
    """Rows that are asked about speech and answered.

    Args:
        wordings: what is asked.
        responses: the answers, without their end.
        new_tokens: room for an answer.

    Returns:
        Text [R, ...] of NumPy arrays.
    """
    rows = [
        render(wording, response, WORDS.encode, template=TEMPLATE, begin=False, end=" </s>")
        for wording, response in zip(wordings, responses, strict=True)
    ]
    longest = max(len(wording.split()) for pair in KINDS.values() for wording in pair)
    size = longest + len(TEMPLATE.prefix.split()) - 1
    prefix, prefix_mask = padded([row.prefix for row in rows], WORDS.pad, size)
    size = len(TEMPLATE.suffix.split()) + new_tokens + 1  # with the end token
    suffix, suffix_mask = padded([row.suffix for row in rows], WORDS.pad, size)
    labels, _ = padded([row.labels for row in rows], IGNORED, size)
    return Text(prefix, prefix_mask, suffix, suffix_mask, labels)  # type: ignore[arg-type]


def asked_text(wordings: Sequence[str]) -> Text:
    """Rows that are asked about speech and not answered yet."""
    text = speech_text(wordings, [""] * len(wordings), 1)
    tag = len(TEMPLATE.suffix.split())
    cut: Any = jax.tree.map(lambda leaf: leaf[:, :tag], text[2:])
    return Text(text.prefix, text.prefix_mask, *cut)


def wordings_of(run: SpeechTextRun, kind: str, rows: int, purpose: str) -> list[str]:
    """One of the wordings of a kind for each of several rows.

    Args:
        run: the config, whose seed of speech draws.
        kind: of instructions.
        rows: how many.
        purpose: rows of another purpose are drawn anew.

    Returns:
        Instructions.
    """
    seed = [run.speech.seed, list(KINDS).index(kind), sum(map(ord, purpose))]
    known = KINDS[kind]
    chosen = np.random.default_rng(seed).integers(0, len(known), rows)
    return [known[number] for number in chosen]
