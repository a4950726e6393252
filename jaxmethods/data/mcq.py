"""Multiple-choice questions from JSON Lines or JSON, checked before anything is run.

Three layouts are read, in any mixture of lines:

    {"question": str, "choices": [str, ...], "label": int, "context"?: str, "target"?: str, "id"?}
    {"question": str, "mc1_targets": {text: 0 | 1, ...}}                        (TruthfulQA)
    {"question": str, "mc1_targets": {"choices": [...], "labels": [0 | 1, ...]}}  (Hugging Face)

A file holds one object a line, or one JSON array of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxmethods.errors import UserError


class McqError(UserError):
    """A file that doesn't hold multiple-choice questions; the message names file and line."""


class Question(NamedTuple):
    """A question and its candidates."""

    id: str
    question: str
    choices: tuple[str, ...]
    label: int
    """Index of the right candidate."""
    context: str = ""
    target: str = ""
    source_order: tuple[int, ...] | None = None
    """For each candidate, its place in the data set's own order, where the file is permuted."""


def read_questions(path: str | Path) -> list[Question]:
    """Reads all questions of a file.

    Raises:
        McqError: the file can't be read, holds no question, or a line is not a question; nothing is
            skipped silently.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise McqError(f"questions {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise McqError(f"questions {path}: is not UTF-8 text") from error
    questions, known = [], {}
    for where, row in _rows(path, text):
        try:
            question = _question(row, f"{path.stem}-{len(questions):04d}")
        except ValueError as error:
            raise McqError(f"questions {path}: {where}: {error}") from error
        if question.id in known:
            raise McqError(
                f"questions {path}: {where}: id {question.id!r} is that of {known[question.id]} too"
            )
        known[question.id] = where
        questions.append(question)
    if not questions:
        raise McqError(f"questions {path}: holds no questions")
    return questions


def in_source_order(question: Question) -> Question:
    """The question with its candidates as its data set lists them, where that is known."""
    order = question.source_order
    if order is None:
        return question
    back = sorted(range(len(order)), key=lambda place: order[place])
    choices = tuple(question.choices[place] for place in back)
    return question._replace(choices=choices, label=order[question.label], source_order=None)


def _rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise McqError(f"questions {path}: not valid JSON ({error})") from error
        for number, row in enumerate(rows):
            yield f"entry {number}", row
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except ValueError as error:
            raise McqError(f"questions {path}: line {number}: not valid JSON ({error})") from error


def _question(row: Any, name: str) -> Question:
    if not isinstance(row, Mapping):
        raise ValueError(f"expected an object, got {type(row).__name__}")
    choices, label = _targets(row["mc1_targets"]) if "mc1_targets" in row else _choices(row)
    if not choices:
        raise ValueError("choices: expected at least one candidate, got none")
    empty = [place for place, choice in enumerate(choices) if not choice.strip()]
    if empty:
        raise ValueError(f"choices: candidate {empty[0]} is empty")
    order = row.get("source_order")
    if order is not None and sorted(order) != list(range(len(choices))):
        raise ValueError(f"source_order: expected a permutation of {len(choices)} places")
    return Question(
        id=str(row.get("id", name)),
        question=_text(row, "question"),
        choices=tuple(choices),
        label=label,
        context=_text(row, "context", ""),
        target=_text(row, "target", ""),
        source_order=None if order is None else tuple(order),
    )


def _choices(row: Mapping[str, Any]) -> tuple[Sequence[str], int]:
    choices, label = row.get("choices"), row.get("label")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise ValueError(f"choices: expected a list of strings, got {choices!r:.80}")
    if not isinstance(label, int) or isinstance(label, bool):
        raise ValueError(f"label: expected the index of the right candidate, got {label!r:.80}")
    if choices and not 0 <= label < len(choices):
        raise ValueError(f"label: expected an index of {len(choices)} candidates, got {label}")
    return choices, label


def _targets(targets: Any) -> tuple[Sequence[str], int]:
    if not isinstance(targets, Mapping):
        raise ValueError("mc1_targets: expected an object")
    if isinstance(targets.get("choices"), list) and isinstance(targets.get("labels"), list):
        choices, labels = targets["choices"], targets["labels"]
    else:
        choices, labels = list(targets), list(targets.values())
    if not all(isinstance(choice, str) for choice in choices) or len(choices) != len(labels):
        raise ValueError("mc1_targets: expected a 0 or 1 for every candidate")
    if [bool(label) for label in labels].count(True) != 1:
        raise ValueError("mc1_targets: expected exactly one right candidate")
    return choices, labels.index(1)


def _text(row: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = row.get(name, default)
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected a string, got {value!r:.80}")
    return value
