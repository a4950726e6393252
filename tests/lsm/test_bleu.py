"""Corpus BLEU: known values, characters of Chinese, a missing package."""

from __future__ import annotations

import sys

import pytest

from jaxmethods.errors import MissingExtraError
from jaxmethods.lsm.transcripts.bleu import corpus_bleu


def test_a_text_that_lacks_words_is_penalized_for_its_length():
    pytest.importorskip("sacrebleu")
    right = ["the cat sat on the mat today"]
    assert corpus_bleu(right, right) == pytest.approx(100)
    # All n-grams of 5 of 7 words are right, which leaves exp(1 - 7 / 5).
    assert corpus_bleu(right, ["the cat sat on the"]) == pytest.approx(67.032, abs=1e-3)


def test_chinese_is_counted_in_characters():
    pytest.importorskip("sacrebleu")
    right, given = ["我们今天去学校"], ["我们今天去商店"]
    assert corpus_bleu(right, given) < 5 < 50 < corpus_bleu(right, given, "Chinese")


@pytest.mark.parametrize(
    ("language", "right", "given"),
    [
        ("Traditional Chinese", "我们今天去学校", "我们今天去商店"),
        ("Japanese", "わたしは学校に行きます", "わたしは学校に来ました"),
        ("th", "ฉันไปโรงเรียนวันนี้", "ฉันไปโรงเรียนเมื่อวาน"),
    ],
)
def test_languages_without_spaces_are_counted_in_characters(language, right, given):
    """A sentence that is right but for its last word."""
    pytest.importorskip("sacrebleu")
    assert corpus_bleu([right], [given], language) > 50


def test_without_the_package_its_install_line_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(MissingExtraError, match=r"jaxmethods\[speech\]"):
        corpus_bleu(["a"], ["a"])
    with pytest.raises(ValueError, match="one for each of 2 references"):
        corpus_bleu(["a", "b"], ["a"])
