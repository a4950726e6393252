"""Transcripts without what is no error: case, punctuation, contractions, spelling, numbers.

Whisper's two normalizers (Radford et al., arXiv 2212.04356, appendix C), whose rules are a part of
what a published word error rate means. The table of British spellings is a file that Whisper
folders bring along, `normalizer.json`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path

from jaxmethods.errors import DataError
from jaxmethods.files import refusals
from jaxmethods.lsm.transcripts.spoken_numbers import write_digits

FILLERS = r"\b(hmm|mm|mhm|mmm|uh|um)\b"
WHOLE = {
    "won't": "will not",
    "can't": "can not",
    "let's": "let us",
    "ain't": "aint",
    "y'all": "you all",
    "wanna": "want to",
    "gotta": "got to",
    "gonna": "going to",
    "i'ma": "i am going to",
    "imma": "i am going to",
    "woulda": "would have",
    "coulda": "could have",
    "shoulda": "should have",
    "ma'am": "madam",
}
TITLES = {
    "mr": "mister",
    "mrs": "missus",
    "st": "saint",
    "dr": "doctor",
    "prof": "professor",
    "capt": "captain",
    "gov": "governor",
    "ald": "alderman",
    "gen": "general",
    "sen": "senator",
    "rep": "representative",
    "pres": "president",
    "rev": "reverend",
    "hon": "honorable",
    "asst": "assistant",
    "assoc": "associate",
    "lt": "lieutenant",
    "col": "colonel",
    "jr": "junior",
    "sr": "senior",
    "esq": "esquire",
}
ENDINGS = {
    "'d been": " had been",
    "'s been": " has been",
    "'d gone": " had gone",
    "'s gone": " has gone",
    "'d done": " had done",
    "'s got": " has got",
    "n't": " not",
    "'re": " are",
    "'s": " is",
    "'d": " would",
    "'ll": " will",
    "'t": " not",
    "'ve": " have",
    "'m": " am",
}
REPLACED = [
    *((rf"\b{word}\b", longer) for word, longer in WHOLE.items()),
    *((rf"\b{word}\b", f"{longer} ") for word, longer in TITLES.items()),
    *((rf"{ending}\b", longer) for ending, longer in ENDINGS.items()),
]
KEPT = ".%$¢€£"
LETTERS = {"œ": "oe", "ø": "o", "æ": "ae", "ß": "ss", "đ": "d", "ð": "d", "þ": "th", "ł": "l"}
"""Letters that are more than a letter and a mark."""


def normalize_basic(text: str) -> str:
    """Lower case, without brackets, symbols and marks: for any language.

    Args:
        text: a transcript.

    Returns:
        Words with one space between them, maybe one at either end.
    """
    text = _without_brackets(text.lower())
    text = "".join(
        " " if unicodedata.category(letter)[0] in "MSP" else letter
        for letter in unicodedata.normalize("NFKC", text)
    )
    return re.sub(r"\s+", " ", text.lower())


def normalize_english(text: str, spelling: Mapping[str, str]) -> str:
    """The words that count, of an English transcript.

    Args:
        text: a transcript.
        spelling: British -> American, word by word; of `read_spelling`, or {}.

    Returns:
        Words with one space between them.
    """
    text = _without_brackets(text.lower())
    text = re.sub(FILLERS, "", text)
    text = re.sub(r"\s+'", "'", text)
    for pattern, replacement in REPLACED:
        text = re.sub(pattern, replacement, text)
    text = re.sub(r"(\d),(\d)", r"\1\2", text)
    text = re.sub(r"\.([^0-9]|$)", r" \1", text)
    text = write_digits(_plain_letters(text))
    text = " ".join(spelling.get(word, word) for word in text.split())
    text = re.sub(r"[.$¢€£]([^0-9])", r" \1", text)
    text = re.sub(r"([^0-9])%", r"\1 ", text)
    return re.sub(r"\s+", " ", text)


def english_normalizer(spelling: Mapping[str, str]) -> Callable[[str], str]:
    """`normalize_english` with its table.

    Args:
        spelling: British -> American.

    Returns:
        Text -> text.
    """
    return lambda text: normalize_english(text, spelling)


def read_spelling(path: str | Path) -> dict[str, str]:
    """The table of spellings of a `normalizer.json`.

    Args:
        path: the file.

    Returns:
        British -> American.

    Raises:
        DataError: it is no JSON object of words.
    """
    with refusals(path, "read"):
        text = Path(path).read_text(encoding="utf-8")
    try:
        found = json.loads(text)
    except ValueError as error:
        raise DataError(f"data {path}: is not valid JSON") from error
    if not isinstance(found, dict) or not all(isinstance(word, str) for word in found.values()):
        raise DataError(f"data {path}: expected an object of words and their spellings")
    return found


def _without_brackets(text: str) -> str:
    text = re.sub(r"[<\[][^>\]]*[>\]]", "", text)
    return re.sub(r"\(([^)]+?)\)", "", text)


def _plain_letters(text: str) -> str:
    """Letters without their marks, spaces for symbols that don't belong to a number."""
    found = []
    for letter in unicodedata.normalize("NFKD", text):
        category = unicodedata.category(letter)
        if letter in KEPT:
            found.append(letter)
        elif letter in LETTERS:
            found.append(LETTERS[letter])
        elif category != "Mn":
            found.append(" " if category[0] in "MSP" else letter)
    return "".join(found)
