"""Padding of vocabularies is cut, tokens never are."""

from __future__ import annotations

import pytest

from jaxmethods.language.vocabularies import VocabularyError, common_vocabulary

TOKENS = {"a": 0, "b": 1, "c": 1023}


def test_padding_is_cut_on_either_side():
    assert common_vocabulary(1030, 1024, TOKENS, TOKENS) == 1024
    assert common_vocabulary(1024, 1030, TOKENS, dict(TOKENS)) == 1024


def test_a_token_is_never_cut():
    with pytest.raises(VocabularyError, match=r"1023 \(student\) and 1030 .* up to 1023"):
        common_vocabulary(1023, 1030, TOKENS, TOKENS)


def test_other_tokenizers_are_refused():
    with pytest.raises(VocabularyError, match=r"1030 \(student\) and 1024 .* 'b' \(id 1\)"):
        common_vocabulary(1030, 1024, TOKENS, TOKENS | {"b": 7})
