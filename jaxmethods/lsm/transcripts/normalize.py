"""Transcripts without what is no error: case, punctuation, contractions, spelling, numbers.

Whisper's two normalizers (Radford et al., arXiv 2212.04356, appendix C), whose rules and table of
British spellings are a part of what a published word error rate means. Both are those of the
library `whisper-normalizer` (extra `speech`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from jaxmethods.errors import import_extra


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


@functools.cache
def _normalizers() -> tuple[Callable[[str], str], Callable[[str], str]]:
    """The basic and the English one, which read their tables once."""
    basic: Any = import_extra("whisper_normalizer.basic", "speech")
    english: Any = import_extra("whisper_normalizer.english", "speech")
    return basic.BasicTextNormalizer(), english.EnglishTextNormalizer()
