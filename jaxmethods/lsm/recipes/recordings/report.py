"""What a run leaves: tables with intervals, figures, clips, the training set, all answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxmethods.data.audio import wav_bytes
from jaxmethods.data.log_mel import INT16
from jaxmethods.files import write_atomically
from jaxmethods.lsm.recipes import figures
from jaxmethods.lsm.recipes.figures import as_cell, cell, over_clips
from jaxmethods.lsm.recipes.recordings import judging, tuning
from jaxmethods.lsm.recipes.recordings.augmenting import GENERATED, Written
from jaxmethods.lsm.recipes.recordings.hearing import HEARD
from jaxmethods.lsm.recipes.recordings.judging import BEFORE, CASCADE, STAGE, Judged
from jaxmethods.lsm.recipes.recordings.models import Models
from jaxmethods.lsm.recipes.recordings.rows import JUDGED, SPLITS, TRAIN, Rows
from jaxmethods.lsm.recipes.recordings.verdicts import (
    Verdicts,
    asked_of,
    sensitivities,
    values_of,
)
from jaxmethods.numerics.statistics import Interval, markdown_table
from jaxmethods.stages import Results


def report(models: Models, rows: Rows, results: Results, folder: Path) -> None:
    """Writes table.md, figures, clips, answers.jsonl and generated.jsonl.

    Args:
        models: of the run.
        rows: what is said in the recordings.
        results: of the stages that the recipe names.
        folder: gets the files.
    """
    judged: Judged = results[STAGE]
    parts = [behavior_table(models, judged), text_table(judged), alignment_table(judged)]
    if judged.attribution:
        parts.append(markdown_table(*figures.attribution_rows(judged.attribution)) + ATTRIBUTED)
    parts += [dropped_table(models, rows, results), listening_table(models, judged)]
    write_atomically(folder / "table.md", "\n\n".join(parts) + "\n")
    place = folder / "figures"
    place.mkdir(exist_ok=True)
    draw(models, judged, place)
    for number, wave in enumerate(results[HEARD][JUDGED].waves):
        clip = wav_bytes(wave.astype(np.float32) / np.float32(INT16))
        write_atomically(place / f"clip_{number + 1}.wav", clip)
    write_atomically(folder / "answers.jsonl", answers(rows, results, judged))
    if GENERATED in results:
        write_atomically(folder / "generated.jsonl", training_set(rows, results))


def draw(models: Models, judged: Judged, place: Path) -> None:
    """All figures."""
    bars = {name: measures(models, own) for name, own in judged.speech.items()}
    figures.draw_bars({"asked about speech": bars}, place / "copy_and_follow.png")
    alike = {title: figures.alignment_bars(own) for title, own in judged.alignment.items()}
    figures.draw_bars({"speech and text tokens": alike}, place / "alignment.png")
    if judged.attribution:
        figures.draw_attention(judged.attribution, place / "attention_by_layer.png")
    curves = strengths(models, judged)
    if curves:
        figures.draw_strengths(curves, place / "lora_scale.png")


def strengths(models: Models, judged: Judged) -> dict[str, list[tuple[float, Any]]]:
    """Student -> strengths of its additions and what it does at each, where there are several."""
    curves: dict[str, list[tuple[float, Any]]] = {}
    for job in judging.jobs(models):
        if job.what == "speech" and job.student is not None and job.student.tune.trains == "lora":
            points = dict(curves.get(job.student.title, []))
            points[job.strength] = measures(models, judged.speech[job.name])
            curves[job.student.title] = sorted(points.items())
    return {title: points for title, points in curves.items() if len(points) > 1}


def measures(models: Models, own: Mapping[str, Verdicts]) -> dict[str, Interval]:
    """What bars are drawn of."""
    kinds = models.run.judging.kinds
    values = {"copies": (asked_of(kinds), "copy"), "follows": (judging.followed_of(own), "follow")}
    found = {
        name: over_clips(values_of(own, chosen, measure)) if chosen else Interval(*[np.nan] * 3)
        for name, (chosen, measure) in values.items()
    }
    return found | {"sensitivity": over_clips(sensitivities(own))}


def behavior_table(models: Models, judged: Judged) -> str:
    """A row a student: what it does when it is asked about speech."""
    kinds = models.run.judging.kinds
    followed = judging.followed_of(next(iter(judged.speech.values())))
    heard = [kind for kind in ("transcription", "repetition") if kind in kinds]
    first = next(iter(judged.speech.values()))
    translated = "translation" in kinds and judging.translated(first["translation"])
    head = ["asked about speech", "copies", "follows", "sensitivity", *followed]
    head += [f"WER {kind}" for kind in heard] + ["BLEU"] * translated
    lines = []
    for name, own in judged.speech.items():
        cells = list(map(as_cell, measures(models, own).values()))
        cells += [cell(own[kind].follow()[..., None]) for kind in followed]
        for kind in heard:
            rate = np.mean(own[kind].word_error_rate())
            spread = over_clips(own[kind].errors()[..., None])
            cells.append(f"{rate:.3f} (mean of recordings {spread})")
        if translated:
            cells.append(f"{np.mean(judging.bleu(models, own['translation'])):.1f}")
        lines.append([name, *cells])
    note = (
        "Means with 95 % intervals of the bootstrap over recordings (seeds share them). copies: "
        "the answer is the transcript although something else is asked for; follows: it is right "
        "(one label, and the right one; F1 of key words). sensitivity: edits between answers to "
        f"different instructions, over their length. {CASCADE}: Whisper writes down, the language "
        "model before tuning answers."
    )
    return f"{markdown_table(head, lines)}\n\n{note}"


def text_table(judged: Judged) -> str:
    """What is right as text before and after tuning, and with another recording's sound."""
    followed = judging.followed_of(judged.text[BEFORE])
    head = ["control", *(f"{kind}, as text" for kind in followed), "lost by tuning"]
    head += ["right with another's sound", "tokens learned from"]
    lines = []
    before = _follow(judged.text[BEFORE], followed)
    for title in (BEFORE, *(name for name in judged.text if name != BEFORE)):
        own = judged.text[title]
        cells = [cell(own[kind].follow()[..., None]) for kind in followed]
        lost = other = ""
        if followed and title != BEFORE:
            lost = cell(before - _follow(own, followed))  # recordings are paired
            other = cell(_follow(judged.shuffled[title], followed))
        tokens = judged.tokens.get(title)
        count = "" if tokens is None else f"{np.mean(tokens):.0f}"
        lines.append(["before tuning" if title == BEFORE else title, *cells, lost, other, count])
    note = "As text: the transcript stands in the place of the speech. lost: paired by recording."
    return f"{markdown_table(head, lines)}\n\n{note}"


def _follow(own: Mapping[str, Verdicts], kinds: list[str]) -> np.ndarray:
    return values_of(own, kinds, "follow") if kinds else np.zeros((1, 1, 0))


def alignment_table(judged: Judged) -> str:
    """How alike speech tokens and transcripts are."""
    lines = [
        [title, *map(as_cell, figures.alignment_bars(own).values())]
        for title, own in judged.alignment.items()
    ]
    return f"{markdown_table(['likeness', 'CKA', 'cosine'], lines)}\n\n{figures.ALIGNED}"


ATTRIBUTED = (
    "\n\nAveraged over layers, with 95 % intervals over recordings, of the answers that the "
    "language model gives to the transcripts. The ratio is the mean of a token of speech over that "
    "of a token of the instruction."
)


def dropped_table(models: Models, rows: Rows, results: Results) -> str:
    """What was not used, and why."""
    lines = []
    for split in SPLITS:
        for why, count in (rows.dropped[split] + results[HEARD][split].dropped).items():
            lines.append([f"{split} recordings", why, str(count)])
    written: dict[str, Written] = results.get(GENERATED, {})
    for kind, own in written.items():
        lines += [[f"written: {kind}", why, str(count)] for why, count in own.dropped.items()]
    for title, own in tuning.dropped(models, rows, results).items():
        if own["dropped"]:
            lines.append([f"student {title}", "answers too short or too long", str(own["dropped"])])
    heard = ", ".join(f"{len(results[HEARD][split].lengths)} of {split}" for split in SPLITS)
    table = markdown_table(["dropped", "why", "how many"], lines) if lines else "Nothing dropped."
    return f"{table}\n\nRecordings used: {heard}."


def listening_table(models: Models, judged: Judged) -> str:
    """What is answered about the recordings that are played, by the first seed."""
    kinds = asked_of(models.run.judging.kinds) or list(models.run.judging.kinds)
    head = ["clip", "says", "asked for", *judged.speech]
    first = next(iter(judged.speech.values()))
    lines = []
    for number in range(min(4, len(first[kinds[0]].transcripts))):
        for kind in kinds:
            said = [own[kind].raw[0][number] for own in judged.speech.values()]
            says = first[kind].transcripts[number]
            lines.append([_cell(text) for text in (str(number + 1), says, kind, *said)])
    return markdown_table(head, lines)


def _cell(text: str) -> str:
    """A text within a line of a table."""
    return " ".join(text.replace("|", "/").split())[:160]


def answers(rows: Rows, results: Results, judged: Judged) -> str:
    """All answers about speech, a line each."""
    known = [rows.splits[JUDGED][number] for number in results[HEARD][JUDGED].rows]
    lines = []
    for name, kinds in judged.speech.items():
        for kind, own in kinds.items():
            for seed, texts in enumerate(own.raw):
                for row, text in zip(known, texts, strict=True):
                    found = {"model": name, "kind": kind, "seed": seed, "audio": row.audio}
                    found |= {"says": row.text, "answer": text, "right": row.answer(kind)}
                    lines.append(json.dumps(found, ensure_ascii=False) + "\n")
    return "".join(lines)


def training_set(rows: Rows, results: Results) -> str:
    """The rows that the language model wrote and that are kept, as others read them."""
    known = [rows.splits[TRAIN][number] for number in results[HEARD][TRAIN].rows]
    lines = []
    for kind, own in results[GENERATED].items():
        for place in np.flatnonzero(own.kept).tolist():
            found = {"instruction": own.wordings[place], "audio": known[place].audio}
            found |= {"text": own.texts[place], "kind": kind}
            lines.append(json.dumps(found, ensure_ascii=False) + "\n")
    return "".join(lines)
