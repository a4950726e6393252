"""What a run leaves: tables with intervals, figures, clips to listen to, all answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxmethods.data.audio import wav_bytes
from jaxmethods.data.log_mel import INT16
from jaxmethods.files import write_atomically
from jaxmethods.lsm.config import SpeechTextRun
from jaxmethods.lsm.grammar import ASKED, KINDS
from jaxmethods.lsm.recipes import figures
from jaxmethods.lsm.recipes.figures import as_cell, cell, over_clips
from jaxmethods.lsm.recipes.judging import STAGE, Judged, Verdicts, sensitivities, values_of
from jaxmethods.lsm.recipes.world import JUDGED, SAME, SPEECH
from jaxmethods.lsm.recipes.writing import GENERATED, WRITER, Written
from jaxmethods.numerics.statistics import Interval, markdown_table
from jaxmethods.stages import Results


def report(run: SpeechTextRun, results: Results, folder: Path) -> None:
    """Writes table.md, figures, clips, answers.jsonl and generated.jsonl.

    Args:
        run: the config.
        results: of the stages that the recipe names.
        folder: gets the files.
    """
    judged: Judged = results[STAGE]
    parts = [behavior_table(judged, split) for split in JUDGED]
    parts += [control_table(judged), attribution_table(judged), alignment_table(judged)]
    parts += [dropped_table(results[GENERATED])] if GENERATED in results else []
    parts.append(listening_table(run, judged))
    write_atomically(folder / "table.md", "\n\n".join(parts) + "\n")
    place = folder / "figures"
    place.mkdir(exist_ok=True)
    draw(judged, place)
    for number, wave in enumerate(results[SPEECH][SAME].waves):
        clip = wav_bytes(wave.astype(np.float32) / np.float32(INT16))
        write_atomically(place / f"clip_{number + 1}.wav", clip)
    write_atomically(folder / "answers.jsonl", answers(judged))


def draw(judged: Judged, place: Path) -> None:
    """All figures."""
    panels = {
        split.replace("_", " "): {
            title: measures(own[split]) for title, own in judged.speech.items()
        }
        for split in JUDGED
    }
    figures.draw_bars(panels, place / "copy_and_follow.png")
    figures.draw_attention(judged.attribution, place / "attention_by_layer.png")
    alike = {title: figures.alignment_bars(own) for title, own in judged.alignment.items()}
    figures.draw_bars({"speech and text tokens": alike}, place / "alignment.png")
    if judged.strengths:
        curves = {
            title: [(strength, measures(own)) for strength, own in sorted(points.items())]
            for title, points in judged.strengths.items()
        }
        figures.draw_strengths(curves, place / "lora_scale.png")


def measures(kinds: Mapping[str, Verdicts]) -> dict[str, Interval]:
    """What bars are drawn of."""
    return {
        "copies": over_clips(values_of(kinds, ASKED, "copy")),
        "follows": over_clips(values_of(kinds, ASKED, "follow")),
        "sensitivity": over_clips(sensitivities(kinds)),
    }


def behavior_table(judged: Judged, split: str) -> str:
    """A row a student: what it does when it is asked about speech."""
    head = [split.replace("_", " "), "copies", "follows", *ASKED]
    head += ["WER transcription", "WER repetition", "sensitivity"]
    lines = []
    for title, splits in judged.speech.items():
        kinds = splits[split]
        cells = [cell(values_of(kinds, ASKED, measure)) for measure in ("copy", "follow")]
        cells += [cell(values_of(kinds, (kind,), "follow")) for kind in ASKED]
        for kind in ("transcription", "repetition"):
            cells.append(f"{np.mean(kinds[kind].word_error_rate()):.3f}")
        cells.append(cell(sensitivities(kinds)))
        lines.append([title, *cells])
    note = (
        "Shares of clips, with 95 % intervals of the bootstrap over clips (seeds share them). "
        "copies: the answer is the transcript although intent, key word or mood is asked for; "
        "follows: it is right. sensitivity: edits between answers to different instructions, over "
        "their length."
    )
    return f"{markdown_table(head, lines)}\n\n{note}"


def control_table(judged: Judged) -> str:
    """What is right with another clip's sound, and what is right as text."""
    head = ["control", "intent, other sound", *(f"{kind}, as text" for kind in KINDS)]
    head.append("tokens learned from")
    lines = []
    for title, kinds in judged.text.items():
        other = judged.shuffled.get(title)
        shuffled = "" if other is None else cell(values_of(other, ("intent",), "follow"))
        cells = [cell(values_of(kinds, (kind,), "follow")) for kind in KINDS]
        tokens = judged.tokens.get(title)
        count = "" if tokens is None else f"{np.mean(tokens):.0f}"
        name = "before tuning" if title == WRITER else title
        lines.append([name, shuffled, *cells, count])
    note = (
        "As text: the transcript stands in the place of the speech. The row before tuning is what "
        "the language model can do; a student below it has forgotten."
    )
    return f"{markdown_table(head, lines)}\n\n{note}"


def attribution_table(judged: Judged) -> str:
    """What answers about the intent are made from, averaged over layers and seeds."""
    note = (
        "Averaged over layers, with intervals over clips. The ratio is the mean of a token of "
        "speech over that of a token of the instruction."
    )
    return f"{markdown_table(*figures.attribution_rows(judged.attribution))}\n\n{note}"


def alignment_table(judged: Judged) -> str:
    """How alike speech tokens and transcripts are where the language model takes them in."""
    lines = [
        [title, *map(as_cell, figures.alignment_bars(own).values())]
        for title, own in judged.alignment.items()
    ]
    return f"{markdown_table(['likeness', 'CKA', 'cosine'], lines)}\n\n{figures.ALIGNED}"


def dropped_table(written: dict[str, Written]) -> str:
    """How many of the answers that the language model wrote were dropped."""
    head = ["written by the language model", "rows a seed", "dropped, all seeds", "one of them"]
    lines = [
        [kind, str(own.kept.shape[1]), str(int((~own.kept).sum())), own.texts[0][0]]
        for kind, own in written.items()
    ]
    return markdown_table(head, lines)


def listening_table(run: SpeechTextRun, judged: Judged) -> str:
    """What students of the first seed answer about the clips that are played."""
    titles = list(judged.speech)
    head = ["clip", "says", "asked for", *titles]
    lines = []
    for number in range(min(run.listened, run.speech.judged)):
        for kind in ASKED:
            own = [judged.speech[title][SAME][kind] for title in titles]
            said = [one.answers[0][number] for one in own]
            lines.append([str(number + 1), own[0].transcripts[number], kind, *said])
    return markdown_table(head, lines)


def answers(judged: Judged) -> str:
    """All answers about speech, a line each."""
    lines: list[str] = []
    for title, splits in judged.speech.items():
        for split, kinds in splits.items():
            for kind, own in kinds.items():
                lines += rows_of(title, split, kind, own.answers, own.right, own.transcripts)
    return "".join(lines)


def rows_of(
    title: str,
    split: str,
    kind: str,
    texts: Sequence[Sequence[str]],
    right: Sequence[str],
    transcripts: Sequence[str],
) -> list[str]:
    """Answers to one kind of instruction as JSON Lines.

    Args:
        title: of the student.
        split: which clips.
        kind: what was asked.
        texts: answers, [S][N].
        right: right ones, [N].
        transcripts: what is said, [N].

    Returns:
        Lines.
    """
    return [
        json.dumps(
            {
                "model": title,
                "split": split,
                "kind": kind,
                "seed": seed,
                "clip": clip,
                "says": transcripts[clip],
                "answer": text,
                "right": text == right[clip],
            }
        )
        + "\n"
        for seed, own in enumerate(texts)
        for clip, text in enumerate(own)
    ]
