"""The last stage: students, a cascade and the language model itself answer about other recordings.

Students are asked about speech, about another recording's speech (what they still get right they
get right by chance) and about transcripts (what tuning cost). The language model before tuning
answers about true transcripts, which is what can be reached, and about those that Whisper writes
down: the cascade.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jaxmethods.lsm.behavior import forgetting
from jaxmethods.lsm.recipes.recordings.asking import Questioner, texts_of
from jaxmethods.lsm.recipes.recordings.config import RecordedStudentConfig
from jaxmethods.lsm.recipes.recordings.hearing import TOGETHER
from jaxmethods.lsm.recipes.recordings.models import Models
from jaxmethods.lsm.recipes.recordings.rows import JUDGED, Row, Rows
from jaxmethods.lsm.recipes.recordings.verdicts import (
    FOLLOWED,
    Verdicts,
    asked_of,
    sensitivities,
    values_of,
    verdicts_of,
)
from jaxmethods.lsm.transcripts.alignment import Aligned, cka_interval
from jaxmethods.lsm.transcripts.bleu import corpus_bleu
from jaxmethods.stages import Arrays, Compute, Part, Place, Results

STAGE = "judgment"
BEFORE = "language_model"
CASCADE = "cascade"


class Judged(NamedTuple):
    """Everything that was answered."""

    speech: dict[str, dict[str, Verdicts]]
    """Student, with its strength where that is another one, or the cascade -> kind."""
    shuffled: dict[str, dict[str, Verdicts]]
    """Student -> kind, with another recording's speech."""
    text: dict[str, dict[str, Verdicts]]
    """The language model before tuning, then the students -> kind, about true transcripts."""
    attribution: dict[str, dict[str, np.ndarray]]
    """Student -> fields of `bias.Attribution`, [S, N, ...]."""
    alignment: dict[str, Aligned]
    """Student -> [S, N, ...]."""
    tokens: dict[str, np.ndarray]
    """Student -> tokens that it has learned from, [S]."""
    heard: tuple[str, ...]
    """[N]: what Whisper has written down; empty without a cascade."""


def at_strength(title: str, strength: float) -> str:
    """The name of a student whose additions are weakened."""
    return f"{title}-at-{strength:g}"


class Job(NamedTuple):
    """A part of the stage."""

    what: str
    """speech, other, text, traced or aligned."""
    student: RecordedStudentConfig | None
    """None: the language model before tuning."""
    name: str
    """The student's title, with its strength where that is another one."""
    kind: str = ""
    strength: float = 1.0

    @property
    def part(self) -> str:
        """The part's name."""
        return "-".join(text for text in (self.name, self.what, self.kind) if text)


def jobs(models: Models) -> list[Job]:
    """Everything that is asked, but for the cascade."""
    run = models.run
    kinds, asked = run.judging.kinds, asked_of(run.judging.kinds)
    found: list[Job] = []
    for one in run.students:
        title, own = one.title, one.tune.lora_scale
        strengths = {title: own}
        if one.tune.trains == "lora":
            strengths |= {at_strength(title, scale): scale for scale in run.lora_scales}
        for name, scale in strengths.items():
            found += [Job("speech", one, name, kind, scale) for kind in kinds]
        found += [Job("other", one, title, kind, own) for kind in asked]
        found += [Job("text", one, title, kind) for kind in kinds]
        found += [Job("traced", one, title)] if run.judging.attributed else []
        found.append(Job("aligned", one, title))
    return found + [Job("text", None, BEFORE, kind) for kind in kinds]


def judged_stage(models: Models, rows: Rows) -> Compute:
    """Answers of all students, of the cascade and of the language model, judged."""
    asked = jobs(models)

    def parts(results: Results, place: Place) -> list[Part]:
        questioner = Questioner(models, rows, results, place)
        numbers = questioner.heard.rows
        found = [Part("rows", lambda: {"rows": numbers})]  # those that can be heard
        found += [Part(job.part, partial(answered, questioner, job)) for job in asked]
        starts = range(0, len(numbers), TOGETHER) if models.run.judging.cascade else ()
        return found + [
            Part(f"{CASCADE}-{start:06d}", partial(questioner.cascade, start)) for start in starts
        ]

    def finish(found: Sequence[Arrays]) -> Judged:
        own = [rows.splits[JUDGED][number] for number in found[0]["rows"]]
        answers = zip(asked, found[1:], strict=False)
        return collected(models, own, list(answers), found[1 + len(asked) :])

    return Compute(STAGE, parts, finish, partial(metrics, models))


def answered(questioner: Questioner, job: Job) -> Arrays:
    """The arrays of a part."""
    if job.what == "text":
        return questioner.text(job.student, job.kind)
    assert job.student is not None
    if job.what == "traced":
        return questioner.traced(job.student)
    if job.what == "aligned":
        return questioner.aligned(job.student)
    return questioner.speech(job.student, job.kind, job.strength, int(job.what == "other"))


def collected(
    models: Models, rows: Sequence[Row], found: Sequence[tuple[Job, Arrays]], cascade: Any
) -> Judged:
    """All parts as one.

    Args:
        models: whose tokenizer reads answers.
        rows: the recordings that are judged.
        found: parts and what they are.
        cascade: parts of the cascade; none where there is none.

    Returns:
        Everything that was answered.
    """

    def verdicts(kind: str, texts: Sequence[Sequence[str]]) -> Verdicts:
        return verdicts_of(kind, texts, rows, models.normalize)

    judged = Judged({}, {}, {}, {}, {}, {}, ())
    places = {"speech": judged.speech, "other": judged.shuffled, "text": judged.text}
    for job, arrays in found:
        if job.what in places:
            answers = verdicts(job.kind, texts_of(models, arrays))
            places[job.what].setdefault(job.name, {})[job.kind] = answers
        elif job.what == "traced":
            judged.attribution[job.name] = dict(arrays)
        else:
            judged.alignment[job.name] = Aligned(*(arrays[name] for name in Aligned._fields))
            judged.tokens[job.name] = arrays["tokens"]
    heard = tuple(text for part in cascade for text in json.loads(bytes(part["texts"])))
    if heard:
        judged.speech[CASCADE] = {
            kind: verdicts(kind, [list(_cascade_texts(models, cascade, kind))])
            for kind in models.run.judging.kinds
        }
    return judged._replace(heard=heard)


def _cascade_texts(models: Models, parts: Sequence[Arrays], kind: str) -> Iterator[str]:
    for part in parts:
        yield from texts_of(models, part, f"{kind}_")[0]


def metrics(models: Models, judged: Judged) -> dict[str, Any]:
    """Named numbers, each one or [seeds], of everything that was judged."""
    kinds = models.run.judging.kinds
    followed = followed_of(judged.text[BEFORE])
    found: dict[str, Any] = {}
    for name, own in judged.speech.items():
        found |= {f"{name}_{key}": value for key, value in behavior(models, own, kinds).items()}
    before = mean_of(judged.text[BEFORE], followed, "follow") if followed else np.full(1, np.nan)
    for title, own in judged.text.items():
        if followed:
            found[f"{title}_text_follow"] = mean_of(own, followed, "follow")
    for title, own in judged.shuffled.items():
        if followed:
            speech = mean_of(judged.speech[title], followed, "follow")
            values = [forgetting(float(value), float(before[0])) for value in speech]
            found[f"{title}_forgetting"] = np.asarray(values)
            found[f"{title}_shuffled_follow"] = mean_of(own, followed, "follow")
            for kind in followed:
                found[f"{title}_shuffled_{kind}"] = mean_of(own, (kind,), "follow")
        found[f"{title}_tokens"] = judged.tokens[title]
        aligned = judged.alignment[title]
        found[f"{title}_cka"] = cka_interval(aligned.speech, aligned.text).mean
        found[f"{title}_cosine"] = aligned.cosine.mean(1)
    # The cascade and the language model have no seeds.
    found = {name: value[0] if np.shape(value) == (1,) else value for name, value in found.items()}
    return {name: value for name, value in found.items() if np.all(np.isfinite(value))}


def behavior(
    models: Models, own: Mapping[str, Verdicts], kinds: Sequence[str]
) -> dict[str, np.ndarray]:
    """Copying, following, sensitivity, word error rate and BLEU of one student, each [S]."""
    asked, followed = asked_of(kinds), followed_of(own)
    found = {"sensitivity": sensitivities(own).mean(1)}
    if asked:
        found["copy"] = mean_of(own, asked, "copy")
    if followed:
        found["follow"] = mean_of(own, followed, "follow")
    for kind in kinds:
        if kind in followed:
            found[kind] = mean_of(own, (kind,), "follow")
        if kind == "transcription":
            found["word_error_rate"] = own[kind].word_error_rate()
        if kind == "translation" and translated(own[kind]):
            found["bleu"] = bleu(models, own[kind])
    return found


def followed_of(own: Mapping[str, Verdicts]) -> list[str]:
    """Kinds for which some right answer is known."""
    return [kind for kind, found in own.items() if kind in FOLLOWED and any(found.right)]


def translated(found: Verdicts) -> bool:
    """Whether some right translation is known."""
    return any(found.translations)


def bleu(models: Models, found: Verdicts) -> np.ndarray:
    """BLEU of the rows whose translation is known, [S]."""
    known = [place for place, text in enumerate(found.translations) if text]
    right = [found.translations[place] or "" for place in known]
    language = models.run.augment.target_language
    return np.asarray(
        [corpus_bleu(right, [own[place] for place in known], language) for own in found.raw]
    )


def mean_of(own: Mapping[str, Verdicts], kinds: Sequence[str], measure: str) -> np.ndarray:
    """Mean over recordings and kinds of `follow` or `copy`, [S]; NaN where nothing is known."""
    values = values_of(own, kinds, measure)
    counts = np.isfinite(values).sum((1, 2))
    return np.nansum(values, axis=(1, 2)) / np.where(counts, counts, np.nan)
