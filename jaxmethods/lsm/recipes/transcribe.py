"""`method: transcribe` on the command line: recordings written down by a Whisper.

Every recording is a part that the run folder keeps, so that a stopped run goes on. Where a manifest
says what was said, the word error rate of the corpus is the result, after Whisper's English
normalizer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmethods.data import audio
from jaxmethods.data.audio import AudioError
from jaxmethods.errors import DataError
from jaxmethods.files import write_atomically
from jaxmethods.lsm.config import TranscribeRun as Run
from jaxmethods.lsm.recipes.manifests import numbered_rows
from jaxmethods.lsm.transcripts.normalize import normalizer_of
from jaxmethods.lsm.transcripts.word_errors import corpus_errors, word_errors
from jaxmethods.models import whisper
from jaxmethods.numerics.statistics import bootstrap_interval, markdown_table
from jaxmethods.stages import Arrays, Compute, Part, Place, Recipe, Results

__all__ = ["Run", "recipe"]
STAGE = "transcripts"


class Recording(NamedTuple):
    """What is written down."""

    reference: str
    """path or path:start:frames."""
    folder: Path | None
    """What a relative path is relative to."""
    said: str | None
    """What is known to be said."""


class Transcript(NamedTuple):
    """What was heard."""

    text: str
    seconds: float
    heard: bool
    """False where the recording could not be read."""


def recipe(run: Run) -> Recipe:
    """One stage: every recording is heard.

    Raises:
        HubError, TokenizerError: the model can't be used.
        DataError: a manifest that can't be read, a recording that is missing.
        MissingExtraError: soundfile, soxr, tokenizers or whisper-normalizer is needed and not
            installed.
    """
    recordings = recordings_of(run)
    if not run.skip_unreadable:
        for one in recordings:
            segment = audio.parse_segment(one.reference, one.folder)
            if not segment.path.is_file():
                raise AudioError(f"audio {segment.path}: no such file")
    read_model(run)  # says what is wrong before there is a run folder
    known = any(one.said is not None for one in recordings)
    if known:
        normalizer_of(run.language)

    def parts(results: Results, place: Place) -> list[Part]:
        del results, place
        return [
            Part(f"{number:06d}", partial(hear, run, one)) for number, one in enumerate(recordings)
        ]

    def finish(found: Sequence[Arrays]) -> list[Transcript]:
        return [
            Transcript(bytes(one["text"]).decode(), float(one["seconds"]), bool(one["heard"]))
            for one in found
        ]

    headline = [f"{STAGE}/word_error_rate"] if known else []
    stage = Compute(STAGE, parts, finish, partial(metrics, run, recordings))
    return Recipe([stage], partial(report, run, recordings), (STAGE,), headline)


def read_model(run: Run) -> whisper.Transcriber:
    """The model, read once."""
    return _read_model(run.model, run.language, run.batch, run.new_tokens, run.beams)


@lru_cache(maxsize=1)
def _read_model(
    path: Path, language: str, batch: int, new_tokens: int, beams: int
) -> whisper.Transcriber:
    return whisper.read_transcriber(
        path, language=language, batch=batch, new_tokens=new_tokens, beams=beams
    )


def recordings_of(run: Run) -> list[Recording]:
    """All recordings that a config names. Raises `DataError` for a manifest that is none."""
    found = [Recording(reference, None, None) for reference in run.audio]
    if run.manifest is None:
        return found
    for number, row in numbered_rows(run.manifest):
        reference = row.get("audio") if isinstance(row, dict) else None
        said = row.get("text") if isinstance(row, dict) else None
        if not isinstance(reference, str) or not isinstance(said, str | None):
            raise DataError(
                f"data {run.manifest}: line {number}: expected an object with the text fields "
                f"audio and maybe text, got {json.dumps(row)[:60]!r}"
            )
        found.append(Recording(reference, run.manifest.parent, said))
    if not found:
        raise DataError(f"data {run.manifest}: holds no recordings")
    return found


def hear(run: Run, recording: Recording) -> Arrays:
    """One recording as text, in UTF-8 bytes."""
    try:
        wave = audio.load(recording.reference, folder=recording.folder)
    except AudioError:
        if not run.skip_unreadable:
            raise
        return encoded("", 0.0, False)
    return encoded(read_model(run)([wave])[0], len(wave) / audio.RATE, True)


def encoded(text: str, seconds: float, heard: bool) -> Arrays:
    """A transcript as arrays."""
    return {
        "text": np.frombuffer(text.encode(), np.uint8),
        "seconds": np.float64(seconds),
        "heard": np.bool_(heard),
    }


def metrics(
    run: Run, recordings: Sequence[Recording], found: Sequence[Transcript]
) -> dict[str, Any]:
    """How much was heard, and the word error rate where it is known what was said."""
    values: dict[str, Any] = {
        "recordings": len(found),
        "skipped": sum(not one.heard for one in found),
        "seconds": sum(one.seconds for one in found),
    }
    pairs = compared(run, recordings, found)
    if pairs:
        values["word_error_rate"] = corpus_errors(*zip(*pairs, strict=True)).rate
    return values


def compared(
    run: Run, recordings: Sequence[Recording], found: Sequence[Transcript]
) -> list[tuple[str, str]]:
    """Normalized pairs of what was said and what was heard."""
    if all(one.said is None for one in recordings):
        return []
    normalize = normalizer_of(run.language)
    return [
        (normalize(one.said), normalize(own.text))
        for one, own in zip(recordings, found, strict=True)
        if one.said is not None and own.heard
    ]


def report(run: Run, recordings: Sequence[Recording], results: Results, folder: Path) -> None:
    """Writes transcripts.jsonl and table.md.

    Args:
        run: the config.
        recordings: what was to be heard.
        results: of the stage.
        folder: gets the files.
    """
    found: Sequence[Transcript] = results[STAGE]
    rows: list[dict[str, Any]] = [
        {"audio": one.reference, "text": own.text, "seconds": round(own.seconds, 3)}
        | ({} if one.said is None else {"said": one.said})
        | ({} if own.heard else {"skipped": True})
        for one, own in zip(recordings, found, strict=True)
    ]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_atomically(folder / "transcripts.jsonl", "".join(lines))
    shown = [[row["audio"], row["text"], row.get("said", "")] for row in rows]
    text = markdown_table(["recording", "heard", "said"], shown[:50])
    pairs = compared(run, recordings, found)
    if pairs:
        errors = corpus_errors(*zip(*pairs, strict=True))
        each = np.asarray([word_errors(*pair).rate for pair in pairs])
        text += (
            f"\n\nWord error rate {100 * errors.rate:.2f} % ({errors.substitutions} substitutions, "
            f"{errors.deletions} deletions, {errors.insertions} insertions, {errors.words} words); "
            f"mean of recordings and its 95 % interval: {bootstrap_interval(each)}."
        )
    write_atomically(folder / "table.md", text + "\n")
