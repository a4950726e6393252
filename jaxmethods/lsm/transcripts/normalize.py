"""Transcripts without what is no error: case, punctuation, contractions, spelling, numbers.

Whisper's two normalizers (Radford et al., arXiv 2212.04356, appendix C), whose rules and table of
British spellings are a part of what a published word error rate means. Both are those of the
library `whisper-normalizer` (extra `speech`). The English one is for English alone: "um", a filler
there, is a word of others.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

from jaxmethods.errors import import_extra

ENGLISH = ("en", "english")
UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)


def normalize_basic(text: str) -> str:
    """Lower case, without brackets, symbols and marks: for any language.

    Args:
        text: a transcript.

    Returns:
        Words with one space between them, maybe one at either end.

    Raises:
        MissingExtraError: the extra `speech` is not installed.
    """
    return _normalizers()[0](text)


def normalize_english(text: str) -> str:
    """The words that count, of an English transcript.

    Args:
        text: a transcript.

    Returns:
        Words with one space between them.

    Raises:
        MissingExtraError: the extra `speech` is not installed.
    """
    return _normalizers()[1](text)


def normalizer_of(language: str) -> Callable[[str], str]:
    """What makes transcripts of a language comparable, word by word.

    Args:
        language: of the speech, as Whisper names it: "en", "de", "zh".

    Returns:
        The English normalizer of English; else the basic one, behind which characters of scripts
        without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan) are words of their
        own: a sentence would be one word, and wrong as a whole. Words have one space between them.

    Raises:
        MissingExtraError: the extra `speech` is not installed.
    """
    _normalizers()
    english = language.strip().lower() in ENGLISH

    def normalized(text: str) -> str:
        found = (
            normalize_english(text) if english else UNSPACED.sub(r" \g<0> ", normalize_basic(text))
        )
        return " ".join(found.split())

    return normalized


@functools.cache
def _normalizers() -> tuple[Callable[[str], str], Callable[[str], str]]:
    """The basic and the English one, which read their tables once."""
    basic: Any = import_extra("whisper_normalizer.basic", "speech")
    english: Any = import_extra("whisper_normalizer.english", "speech")
    return basic.BasicTextNormalizer(), english.EnglishTextNormalizer()
