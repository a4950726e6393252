"""Multiple-choice questions from JSON Lines or JSON, checked before anything is run.

Three layouts are read, in any mixture of lines:

    {"question": str, "choices": [str, ...], "label": int, "context"?: str, "target"?: str, "id"?}
    {"question": str, "mc1_targets": {text: 0 | 1, ...}}                        (TruthfulQA)
    {"question": str, "mc1_targets": {"choices": [...], "labels": [0 | 1, ...]}}  (Hugging Face)

A file holds one object a line, or one JSON array of them. An optional field that is null is absent.
Candidates may be equal; an object that has a key twice is refused, because only one would count.
"""

from __future__ import annotations

import json
import math
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
        except RecursionError as error:
            raise McqError(f"questions {path}: {where}: is nested too deeply") from error
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
    if text.startswith("\ufeff"):
        raise McqError(
            f"questions {path}: begins with a byte-order mark (BOM); save it as UTF-8 without one"
        )
    if text.lstrip().startswith("["):
        for number, row in enumerate(_parsed(text, f"questions {path}")):
            yield f"entry {number}", row
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", _parsed(line, f"questions {path}: line {number}")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise McqError(f"{where}: not valid JSON ({error})") from error
    except RecursionError as error:
        raise McqError(f"{where}: is nested too deeply") from error
    except ValueError as error:  # a key twice, an integer of thousands of digits
        raise McqError(f"{where}: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dict; the last of two equal keys would decide, perhaps on the right answer."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"expected every key once, got {key!r:.80} twice")
        found[key] = value
    return found


def _question(row: Any, name: str) -> Question:
    if not isinstance(row, Mapping):
        raise ValueError(f"expected an object, got {type(row).__name__}")
    choices, label = _candidates(row)
    if not choices:
        raise ValueError("choices: expected at least one candidate, got none")
    empty = [place for place, choice in enumerate(choices) if not choice.strip()]
    if empty:
        raise ValueError(f"choices: candidate {empty[0]} is empty")
    return Question(
        id=_id(row.get("id"), name),
        question=_text(row, "question"),
        choices=tuple(_written(choice, "choices") for choice in choices),
        label=label,
        context=_text(row, "context", ""),
        target=_text(row, "target", ""),
        source_order=_order(row.get("source_order"), len(choices)),
    )


def _id(given: Any, default: str) -> str:
    if given is None:
        return default
    if isinstance(given, str):
        return _written(given, "id")
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise ValueError(f"id: expected a string or a number, got {given!r:.80}")
    return str(given)


def _order(order: Any, count: int) -> tuple[int, ...] | None:
    if order is None:
        return None
    whole = isinstance(order, list) and all(type(place) is int for place in order)
    if not whole or sorted(order) != list(range(count)):
        raise ValueError(
            f"source_order: expected a permutation of {count} places, got {order!r:.80}"
        )
    return tuple(order)


def _candidates(row: Mapping[str, Any]) -> tuple[Sequence[str], int]:
    """Candidates and the right one's index, in whichever layout they are."""
    if row.get("mc1_targets") is None:
        return _choices(row)
    found = _targets(row["mc1_targets"])
    if row.get("choices") is not None and _choices(row) != found:
        raise ValueError("choices: expected those of mc1_targets, or one of both alone")
    return found


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
        raise ValueError(f"mc1_targets: expected an object, got {targets!r:.80}")
    if isinstance(targets.get("choices"), list) and isinstance(targets.get("labels"), list):
        choices, labels = targets["choices"], targets["labels"]
    else:
        choices, labels = list(targets), list(targets.values())
    if not all(isinstance(choice, str) for choice in choices) or len(choices) != len(labels):
        raise ValueError("mc1_targets: expected a 0 or 1 for every candidate")
    wrong = [x for x in labels if not isinstance(x, int | float) or x not in (0, 1)]
    if wrong:
        raise ValueError(f"mc1_targets: expected 0 or 1 for a candidate, got {wrong[0]!r:.80}")
    if labels.count(1) != 1:
        raise ValueError(f"mc1_targets: expected exactly one right candidate, got {sum(labels):g}")
    return choices, labels.index(1)


def _text(row: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = row.get(name)
    value = default if value is None else value
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected a string, got {value!r:.80}")
    return _written(value, name)


def _written(text: str, name: str) -> str:
    """The text, which no tokenizer could encode if it held half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}: expected text, got the lone surrogate {text[error.start]!r}"
        ) from error
    return text
