"""Translations against right ones: corpus BLEU as sacreBLEU has it.

    BLEU = 100 min(1, exp(1 - r / c)) exp(mean of log p_n for n = 1 .. 4)

with p_n the clipped precision of n-grams of the whole corpus and r, c the words of right and given
texts (Papineni et al. 2002; Post, "A Call for Clarity in Reporting BLEU Scores", 2018). Words are
those of tokenizer 13a; of languages that are written without spaces they are characters, since a
sentence would be a word. The package `sacrebleu` counts (extra `speech`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jaxmethods.errors import import_extra

CHINESE = frozenset(("chinese", "mandarin", "cantonese", "zh", "cmn", "yue", "中文"))
UNSPACED = frozenset(
    ("japanese", "ja", "jpn", "日本語", "thai", "th", "tha", "lao", "lo", "khmer", "km", "khm",
     "burmese", "myanmar", "my", "mya", "tibetan", "bo", "bod")
)  # fmt: skip
"""Korean has spaces, and the words of 13a."""


def corpus_bleu(references: Sequence[str], hypotheses: Sequence[str], language: str = "") -> float:
    """BLEU of all texts together.

    Args:
        references: right ones.
        hypotheses: as many, given ones.
        language: that they are written in, by its English name or code, such as "Simplified
            Chinese", "Japanese", "zh-TW"; those without spaces are counted in characters.

    Returns:
        From 0 to 100.

    Raises:
        ValueError: none, or other numbers of texts.
        MissingExtraError: sacrebleu is not installed.
    """
    if len(references) != len(hypotheses) or not references:
        raise ValueError(
            f"hypotheses: expected one for each of {len(references)} references, at least one, "
            f"got {len(hypotheses)}"
        )
    sacrebleu: Any = import_extra("sacrebleu", "speech")
    named = set(re.split(r"[\W_]+", language.lower()))
    words = "zh" if named & CHINESE else "char" if named & UNSPACED else "13a"
    return float(sacrebleu.corpus_bleu(list(hypotheses), [list(references)], tokenize=words).score)
