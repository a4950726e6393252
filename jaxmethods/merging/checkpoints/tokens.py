"""Which token each row of an embedding is for, as the tokenizer of a model folder says it.

A folder says it by ids (`tokenizer.json`; `vocab.json` or `vocab.txt`, with `added_tokens.json`),
or by the pieces of a SentencePiece file, whose numbers are ids in some families and stand behind a
few special tokens in others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

PIECES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
PIECES_ARE_IDS = {"llama", "mistral", "mixtral", "gemma", "gemma2"}
"""Families whose ids are the numbers of pieces."""
WHOLE, LENGTH = 0, 2
LONGEST = 70
"""Bits of a number's bytes."""
FIXED = {1: 8, 5: 4}
"""Kinds of fields of a protocol buffer; bytes of those of a fixed length."""


def shared_tokens(ours: Path, theirs: Path, family: object) -> list[tuple[int, str, str]]:
    """(id, our token, their token) of all ids that both folders name; empty where nothing is known.

    Args:
        ours, theirs: model folders.
        family: their `model_type`.
    """
    one, other = _by_id(ours), _by_id(theirs)
    if not one or not other:
        pieces = _pieces(ours), _pieces(theirs)
        if all(pieces):
            one, other = pieces
        elif isinstance(family, str) and family in PIECES_ARE_IDS:
            one, other = one or pieces[0], other or pieces[1]
    return [(number, one[number], other[number]) for number in sorted(one.keys() & other.keys())]


def _by_id(path: Path) -> dict[int, str]:
    """Id -> token; empty where no file says it."""
    try:
        if (path / "tokenizer.json").is_file():
            return _of_file(json.loads((path / "tokenizer.json").read_bytes()))
        if (path / "vocab.json").is_file():
            vocabulary = json.loads((path / "vocab.json").read_bytes())
            found = {int(number): str(token) for token, number in vocabulary.items()}
        else:
            lines = (path / "vocab.txt").read_text(encoding="utf-8").split("\n")
            found = dict(enumerate(lines[:-1] if not lines[-1] else lines))
        if (path / "added_tokens.json").is_file():
            added = json.loads((path / "added_tokens.json").read_bytes())
            found |= {int(number): str(token) for token, number in added.items()}
        return found
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return {}


def _of_file(content: dict) -> dict[int, str]:
    """The tokens of a `tokenizer.json`."""
    vocabulary = content["model"]["vocab"]
    if isinstance(vocabulary, list):  # of pieces with their scores
        vocabulary = {piece[0]: number for number, piece in enumerate(vocabulary)}
    found = {number: token for token, number in vocabulary.items()}
    added = content.get("added_tokens") or []
    return found | {token["id"]: token["content"] for token in added}


def _pieces(path: Path) -> dict[int, str]:
    """Number -> piece of a SentencePiece file: its fields 1, each a message whose field 1 it is."""
    for name in PIECES:
        try:
            content = (path / name).read_bytes()
            pieces = [part for field, part in _fields(content) if field == 1]
            texts = [next(text for field, text in _fields(own) if field == 1) for own in pieces]
            return {number: text.decode("utf-8") for number, text in enumerate(texts)}
        except (OSError, ValueError, IndexError, KeyError, StopIteration):
            continue
    return {}


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, content) of those fields of a protocol buffer that have a length."""
    place = 0

    def number() -> int:
        nonlocal place
        found = shift = 0
        while True:
            byte = message[place]
            place, found, shift = place + 1, found | (byte & 127) << shift, shift + 7
            if byte < 128:
                return found
            if shift >= LONGEST:
                raise ValueError("a number of more than 64 bits")

    while place < len(message):
        key = number()
        kind = key & 7
        if kind == WHOLE:
            number()
        elif kind == LENGTH:
            size = number()
            if place + size > len(message):
                raise ValueError("a field that goes beyond its message")
            yield key >> 3, message[place : place + size]
            place += size
        else:
            place += FIXED[kind]
