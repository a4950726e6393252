"""What manifests hold: recordings, what is said in them, and right answers where they are known."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from jaxmethods.errors import DataError
from jaxmethods.lsm.augmentation import INSTRUCTIONS
from jaxmethods.lsm.recipes.manifests import numbered_rows
from jaxmethods.lsm.recipes.recordings.config import RecordingsConfig

TRAIN, JUDGED = "train", "judged"
SPLITS = (TRAIN, JUDGED)
NO_AUDIO, NO_TEXT = "no audio", "no text"
ALSO = {"keyword": "keywords"}
"""Kind -> another name that its right answer may have."""


class Row(NamedTuple):
    """A recording."""

    audio: str
    """path or path:start:frames."""
    folder: Path
    """What a relative path is relative to."""
    text: str
    """What is said."""
    answers: tuple[tuple[str, str], ...]
    """Kind of instructions, right answer."""

    def answer(self, kind: str) -> str | None:
        """The right answer to an instruction of a kind; None: nobody knows."""
        return dict(self.answers).get(kind)


class Rows(NamedTuple):
    """The rows of a run."""

    splits: dict[str, tuple[Row, ...]]
    dropped: dict[str, Counter[str]]
    """Split -> why rows of its file were dropped."""


def read_rows(config: RecordingsConfig) -> Rows:
    """All rows that a config names.

    Raises:
        FileError, DataError: a file that can't be read, a line that is no row (but for
            `skip_unusable`, which counts it), or no row for training or judging.
    """
    rows, dropped = _read(config.train, config)
    if config.judged is None:
        cut = len(rows) - max(1, round(config.hold_out * len(rows)))
        splits = {TRAIN: rows[:cut], JUDGED: rows[cut:]}
        reasons = {TRAIN: dropped, JUDGED: Counter[str]()}
    else:
        others, more = _read(config.judged, config)
        splits, reasons = {TRAIN: rows, JUDGED: others}, {TRAIN: dropped, JUDGED: more}
    for split, found in splits.items():
        if not found:
            file = config.judged if split == JUDGED and config.judged else config.train
            raise DataError(f"data {file}: holds no row that could be {_verb(split)}")
    return Rows({split: tuple(found) for split, found in splits.items()}, reasons)


def _verb(split: str) -> str:
    return "learned from" if split == TRAIN else "judged"


def _read(file: Path, config: RecordingsConfig) -> tuple[list[Row], Counter[str]]:
    """Rows of a file, and why others were dropped."""
    rows: list[Row] = []
    dropped: Counter[str] = Counter()
    for number, content in numbered_rows(file):
        if config.limit is not None and len(rows) + dropped.total() == config.limit:
            break
        row = _row(content, file.parent)
        if isinstance(row, Row):
            rows.append(row)
        elif config.skip_unusable:
            dropped[row] += 1
        else:
            raise DataError(
                f"data {file}: line {number}: expected an object with the text fields audio and "
                f"text, got {row} in {json.dumps(content)[:60]}"
            )
    return rows, dropped


def _row(content: Any, folder: Path) -> Row | str:
    """A row, or what it lacks."""
    content = content if isinstance(content, dict) else {}
    audio, text = content.get("audio"), content.get("text")
    if not isinstance(audio, str) or not audio.strip():
        return NO_AUDIO
    if not isinstance(text, str) or not text.strip():
        return NO_TEXT
    answers = []
    for kind in INSTRUCTIONS:
        value = content.get(kind, content.get(ALSO.get(kind, kind)))
        if isinstance(value, str) and value.strip():
            answers.append((kind, value))
    return Row(audio, folder, text.strip(), tuple(answers))
