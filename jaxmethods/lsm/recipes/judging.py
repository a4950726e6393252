"""The last stage: every student answers every kind of instruction about clips it has never heard.

Beside the answers to speech, those to transcripts are judged: of the language model before it was
tuned (what can be reached) and of every student (what tuning cost). A control gives each student
another clip's sound: what it still gets right then, it gets right by chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmethods.layout import Layout
from jaxmethods.lsm import grammar
from jaxmethods.lsm.behavior import copies, follows, forgetting, sensitivity
from jaxmethods.lsm.config import SpeechTextRun
from jaxmethods.lsm.grammar import ASKED, KINDS, Sentence
from jaxmethods.lsm.prompts import padded
from jaxmethods.lsm.recipes.asking import aligning, at_strength, attributing, speaking
from jaxmethods.lsm.recipes.listening import HEARD
from jaxmethods.lsm.recipes.tuning import Learned
from jaxmethods.lsm.recipes.world import (
    JUDGED,
    SAME,
    SPEECH,
    WORDS,
    asked_text,
    material,
    speech_text,
    text_prompts,
    wordings_of,
)
from jaxmethods.lsm.recipes.writing import WRITER, answering
from jaxmethods.lsm.transcripts.alignment import Aligned, cka_interval
from jaxmethods.lsm.transcripts.word_errors import corpus_errors
from jaxmethods.stages import Arrays, Compute, Part, Place, Results

STAGE = "judged"
TEXT, SHUFFLED = "text", "shuffled"
ATTRIBUTED = 24
"""Clips whose answers are traced back to segments of the input."""


class Verdicts(NamedTuple):
    """What was answered to one kind of instruction."""

    answers: tuple[tuple[str, ...], ...]
    """[S][N], without full stops."""
    right: tuple[str, ...]
    """[N]."""
    transcripts: tuple[str, ...]
    """[N]."""

    def follow(self) -> np.ndarray:
        """[S, N]: 1 for a right answer."""
        return np.stack([follows(own, self.right) for own in self.answers])

    def copy(self) -> np.ndarray:
        """[S, N]: 1 for the transcript in place of an answer; NaN where it is the answer."""
        return np.stack([copies(own, self.transcripts, self.right) for own in self.answers])

    def word_error_rate(self) -> np.ndarray:
        """[S]: errors a word of the right answers."""
        return np.asarray([corpus_errors(self.right, own).rate for own in self.answers])


class Judged(NamedTuple):
    """Everything that was answered."""

    speech: dict[str, dict[str, dict[str, Verdicts]]]
    """Student -> split -> kind."""
    shuffled: dict[str, dict[str, Verdicts]]
    """Student -> kind, with another clip's sound."""
    text: dict[str, dict[str, Verdicts]]
    """The language model before tuning, then the students -> kind."""
    attribution: dict[str, dict[str, np.ndarray]]
    """Student -> fields of `bias.Attribution`, [S, N, ...]."""
    alignment: dict[str, Aligned]
    """Student -> speech beside transcripts where the language model takes them in, [S, N, ...]."""
    strengths: dict[str, dict[float, dict[str, Verdicts]]]
    """Student that trains additions -> their strength -> kind; no student without a sweep."""
    tokens: dict[str, np.ndarray]
    """Student -> tokens it has learned from, [S]."""


def judged_stage(run: SpeechTextRun) -> Compute:
    """Answers of all students, judged."""
    titles = [student.title for student in run.students]
    usual = {student.title: student.tune.lora_scale for student in run.students}
    in_text, in_speech = answering(run), speaking(run)
    attribute, likeness = attributing(run), aligning(run)

    def learned(results: Results, title: str, strength: float | None = None) -> Learned:
        return at_strength(results[title], usual[title] if strength is None else strength)

    def speech(
        results: Results,
        place: Place,
        title: str,
        split: str,
        kind: str,
        strength: float | None = None,
    ) -> Arrays:
        shuffled = split == SHUFFLED
        split = SAME if shuffled else split
        spoken, frames = results[SPEECH][split], results[HEARD][split]
        wordings = wordings_of(run, kind, len(spoken.lengths), split)
        lengths = spoken.lengths
        if shuffled:
            frames, lengths = np.roll(frames, 1, axis=1), np.roll(lengths, 1)
        student = learned(results, title, strength)
        found = in_speech(student, frames, lengths, asked_text(wordings))
        return jax.device_get(place(found, Layout()))._asdict()

    def text(results: Results, place: Place, title: str, kind: str) -> Arrays:
        params = results[title] if title == WRITER else learned(results, title).language_model
        sentences = sentences_of(run, results, SAME)
        wordings = wordings_of(run, kind, len(sentences), SAME)
        prompts = text_prompts([one.text for one in sentences], wordings)
        return jax.device_get(place(in_text(params, *prompts), Layout()))._asdict()

    def traced(results: Results, place: Place, title: str) -> Arrays:
        spoken, frames = results[SPEECH][SAME], results[HEARD][SAME][:, :ATTRIBUTED]
        sentences = sentences_of(run, results, SAME)[:ATTRIBUTED]
        wordings = wordings_of(run, "intent", len(sentences), SAME)
        right = [grammar.answer(one, "intent") for one in sentences]
        rows = speech_text(wordings, right, run.new_tokens)
        student = learned(results, title)
        found = attribute(student, frames, spoken.lengths[:ATTRIBUTED], rows)
        tokens = {"tokens": np.asarray(jax.device_get(results[title].tokens))}
        return jax.device_get(place(found, Layout()))._asdict() | tokens

    def aligned(results: Results, place: Place, title: str) -> Arrays:
        spoken, frames = results[SPEECH][SAME], results[HEARD][SAME]
        said = [WORDS.encode(one.text) for one in sentences_of(run, results, SAME)]
        ids, mask = padded(said, WORDS.pad, max(map(len, said)))
        found = likeness(learned(results, title), frames, spoken.lengths, ids, mask)
        return jax.device_get(place(found, Layout()))._asdict()

    def parts(results: Results, place: Place) -> list[Part]:
        found = [
            Part(f"{title}-{split}-{kind}", partial(speech, results, place, title, split, kind))
            for title in titles
            for split in (*JUDGED, SHUFFLED)
            for kind in KINDS
        ]
        found += [
            Part(f"{title}-text-{kind}", partial(text, results, place, title, kind))
            for title in (WRITER, *titles)
            for kind in KINDS
        ]
        found += [
            Part(f"{title}-traced", partial(traced, results, place, title)) for title in titles
        ]
        found += [
            Part(f"{title}-aligned", partial(aligned, results, place, title)) for title in titles
        ]
        return found + [
            Part(
                f"{title}-at-{strength:g}-{kind}",
                partial(speech, results, place, title, SAME, kind, strength),
            )
            for title, strength in swept(run)
            for kind in KINDS
        ]

    def finish(found: Sequence[Arrays]) -> Judged:
        left = iter(found)
        known = {split: judged_sentences(run, split) for split in JUDGED}

        def verdicts(split: str, kind: str) -> Verdicts:
            return verdicts_of(next(left)["tokens"], known[split], kind)

        heard, control = {}, {}
        for title in titles:
            heard[title] = {
                split: {kind: verdicts(split, kind) for kind in KINDS} for split in JUDGED
            }
            control[title] = {kind: verdicts(SAME, kind) for kind in KINDS}
        read = {
            title: {kind: verdicts(SAME, kind) for kind in KINDS} for title in (WRITER, *titles)
        }
        traced = {title: dict(next(left)) for title in titles}
        tokens = {title: own.pop("tokens") for title, own in traced.items()}
        alike = {title: Aligned(**next(left)) for title in titles}
        strengths: dict[str, Any] = {}
        for title, strength in swept(run):
            own = {kind: verdicts(SAME, kind) for kind in KINDS}
            strengths.setdefault(title, {usual[title]: heard[title][SAME]})[strength] = own
        return Judged(heard, control, read, traced, alike, strengths, tokens)

    return Compute(STAGE, parts, finish, partial(metrics, run))


def swept(run: SpeechTextRun) -> list[tuple[str, float]]:
    """Students that train additions, and the strengths at which they are judged besides."""
    return [
        (student.title, strength)
        for student in run.students
        if student.tune.trains == "lora"
        for strength in run.lora_scales
        if strength != student.tune.lora_scale
    ]


def judged_sentences(run: SpeechTextRun, split: str) -> list[Sentence]:
    """What the clips of a judged split say; `say` goes through the held-back sentences in order."""
    del split
    known = material(run.speech)
    others = known.sentences[known.heard :]
    return [others[place % len(others)] for place in range(run.speech.judged)]


def sentences_of(run: SpeechTextRun, results: Results, split: str) -> list[Sentence]:
    """What the clips of a split say."""
    known = material(run.speech).sentences
    return [known[number] for number in results[SPEECH][split].sentences]


def verdicts_of(tokens: np.ndarray, sentences: Sequence[Sentence], kind: str) -> Verdicts:
    """Answers [S, N, n] as texts, beside right ones."""
    texts = [[plain(WORDS.decode(row.tolist())) for row in own] for own in tokens]
    right = [plain(grammar.answer(one, kind)) for one in sentences]
    return Verdicts(tuple(map(tuple, texts)), tuple(right), tuple(one.text for one in sentences))


def plain(text: str) -> str:
    """An answer without its full stop."""
    return " ".join(word for word in text.split() if word != ".")


def metrics(run: SpeechTextRun, judged: Judged) -> dict[str, Any]:
    """Named numbers [seeds] of everything that was judged."""
    found: dict[str, Any] = {}
    before = mean_of(judged.text[WRITER], ASKED, "follow")
    for title, splits in judged.speech.items():
        for split, kinds in splits.items():
            name = f"{title}_{split}"
            found[f"{name}_copy"] = mean_of(kinds, ASKED, "copy")
            found[f"{name}_follow"] = mean_of(kinds, ASKED, "follow")
            for kind in ASKED:
                found[f"{name}_{kind}"] = mean_of(kinds, (kind,), "follow")
            for kind in ("transcription", "repetition"):
                found[f"{name}_{kind}_wer"] = kinds[kind].word_error_rate()
            found[f"{name}_sensitivity"] = sensitivities(kinds).mean(1)
        follow = found[f"{title}_{SAME}_follow"]
        found[f"{title}_forgetting"] = np.asarray(
            [forgetting(a, b) for a, b in zip(follow, before, strict=True)]
        )
        found[f"{title}_shuffled_intent"] = mean_of(judged.shuffled[title], ("intent",), "follow")
        found[f"{title}_tokens"] = judged.tokens[title]
        aligned = judged.alignment[title]
        found[f"{title}_cka"] = cka_interval(aligned.speech, aligned.text).mean
        found[f"{title}_cosine"] = aligned.cosine.mean(1)
    for title, kinds in judged.text.items():
        found[f"{title}_text_follow"] = mean_of(kinds, tuple(KINDS), "follow")
    for title, strength in swept(run):
        for measure in ("copy", "follow"):
            values = mean_of(judged.strengths[title][strength], ASKED, measure)
            found[f"{title}_at_{strength:g}_{measure}"] = values
    return {name: value for name, value in found.items() if np.all(np.isfinite(value))}


def mean_of(kinds: Mapping[str, Verdicts], chosen: Sequence[str], measure: str) -> np.ndarray:
    """Mean over clips and kinds of `follow` or `copy`, [S]."""
    return np.nanmean(values_of(kinds, chosen, measure), axis=(1, 2))


def values_of(kinds: Mapping[str, Verdicts], chosen: Sequence[str], measure: str) -> np.ndarray:
    """`follow` or `copy` of every clip and kind, [S, N, kinds]."""
    return np.stack([getattr(kinds[kind], measure)() for kind in chosen], axis=2)


def sensitivities(kinds: Mapping[str, Verdicts]) -> np.ndarray:
    """How far answers to a clip differ between kinds of instructions, [S, N]."""
    seeds = len(next(iter(kinds.values())).answers)
    return np.stack(
        [sensitivity([own.answers[seed] for own in kinds.values()]) for seed in range(seeds)]
    )
