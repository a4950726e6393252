"""A small byte-pair encoding of one's own: trained on texts, written as a `tokenizer.json`.

Texts are cut into words, digits, punctuation and white space, each with the space before it; the
bytes of a piece are joined, most frequent pairs first (Sennrich et al., "Neural Machine Translation
of Rare Words with Subword Units", ACL 2016, arXiv 1508.07909). Digits stay apart, so that numbers
can be copied. Every text has tokens, and `tokenizers` finds the same ones in the file.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

PIECES = r" ?[A-Za-z_]+| ?[0-9]| ?[^A-Za-z_0-9 \t\r\n]+|[ \t\r\n]+"
"""No character is outside of them; only what Python and Oniguruma read alike."""
SPECIAL = ("<pad>", "<s>", "</s>")
PAD, BEGIN, END = range(3)
KEPT = 65_536
"""Pieces whose tokens are kept in memory."""


def _alphabet() -> list[str]:
    """GPT-2's printable character for every byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


ALPHABET = _alphabet()
BYTES = {character: byte for byte, character in enumerate(ALPHABET)}


class Bpe(NamedTuple):
    """A trained encoding; ids are special tokens, bytes, then pairs in the order of `merges`."""

    merges: tuple[tuple[str, str], ...]

    @property
    def tokens(self) -> dict[str, int]:
        """Token -> id."""
        written = [*SPECIAL, *ALPHABET, *(one + other for one, other in self.merges)]
        return {token: number for number, token in enumerate(written)}

    def as_json(self) -> str:
        """The content of a `tokenizer.json`, with a first token that is added to texts."""
        return json.dumps(_file(self))


def train_bpe(texts: Iterable[str], vocabulary: int) -> Bpe:
    """Joins the most frequent pairs until there are `vocabulary` tokens, or no pair comes twice.

    Args:
        texts: what is to be written with few tokens.
        vocabulary: number of tokens, at least 259 for bytes and special tokens.

    Returns:
        The encoding; ties go to the pair that is first in the alphabet.

    Raises:
        ValueError: fewer tokens than bytes.
    """
    least = len(SPECIAL) + len(ALPHABET)
    if vocabulary < least:
        raise ValueError(f"vocabulary: expected at least {least} tokens, got {vocabulary}")
    counts = Counter(piece for text in texts for piece in re.findall(PIECES, text))
    words = [([ALPHABET[byte] for byte in piece.encode()], n) for piece, n in counts.items()]
    pairs: Counter[tuple[str, str]] = Counter()
    places: dict[tuple[str, str], set[int]] = defaultdict(set)

    def count(number: int, sign: int) -> None:
        symbols, times = words[number]
        for pair in itertools.pairwise(symbols):
            pairs[pair] += sign * times
            places[pair].add(number)

    for number in range(len(words)):
        count(number, 1)
    merges: list[tuple[str, str]] = []
    written = {*SPECIAL, *ALPHABET}
    while len(merges) < vocabulary - least:
        # Two ways to the same token would give it two ids.
        known = (pair for pair in pairs if pair[0] + pair[1] not in written)
        best = min(known, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        merges.append(best)
        written.add(best[0] + best[1])
        for number in sorted(places.pop(best)):
            count(number, -1)
            words[number] = (_joined(words[number][0], best), words[number][1])
            count(number, 1)
    return Bpe(tuple(merges))


class Codec:
    """Writes texts as ids, and reads them."""

    def __init__(self, bpe: Bpe):
        self.tokens = bpe.tokens
        self._names = list(self.tokens)
        self._ranks = {pair: rank for rank, pair in enumerate(bpe.merges)}
        self._piece = lru_cache(maxsize=KEPT)(self._encode_piece)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""
        return [number for piece in re.findall(PIECES, text) for number in self._piece(piece)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens and ids that there aren't are left out."""
        names = (self._names[i] for i in ids if len(SPECIAL) <= i < len(self._names))
        return bytes(BYTES[c] for name in names for c in name).decode(errors="replace")

    def _encode_piece(self, piece: str) -> tuple[int, ...]:
        symbols = [ALPHABET[byte] for byte in piece.encode()]
        while len(symbols) > 1:
            pairs = itertools.pairwise(symbols)
            best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            symbols = _joined(symbols, best)
        return tuple(self.tokens[symbol] for symbol in symbols)


def _joined(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """The symbols with every such pair made one, from left to right."""
    found: list[str] = []
    place = 0
    while place < len(symbols):
        if tuple(symbols[place : place + 2]) == pair:
            found.append(pair[0] + pair[1])
            place += 2
        else:
            found.append(symbols[place])
            place += 1
    return found


def _file(bpe: Bpe) -> dict[str, Any]:
    """What the package `tokenizers` reads."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": n, "content": name, "special": True} | plain for n, name in enumerate(SPECIAL)]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    begin = {"id": SPECIAL[BEGIN], "ids": [BEGIN], "tokens": [SPECIAL[BEGIN]]}
    split = {
        "type": "Split",
        "pattern": {"Regex": PIECES},
        "behavior": "Isolated",
        "invert": False,
    }
    single = [
        {"SpecialToken": {"id": SPECIAL[BEGIN], "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {SPECIAL[BEGIN]: begin},
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": bpe.tokens,
            "merges": [list(pair) for pair in bpe.merges],
        },
    }
