"""Byte pairs: every text comes back, pairs are the frequent ones, `tokenizers` reads the file."""

from __future__ import annotations

import pytest

from jaxmethods.data.bpe import ALPHABET, SPECIAL, Bpe, Codec, train_bpe
from jaxmethods.data.tokenizer import folder_tokenizer, own_tokenizer

TEXTS = ["SELECT name FROM player WHERE goals > 12", "names of players with goals above 12"] * 3
ODD = ["", "  two  spaces\n\ttab", "é 日本 \x1c!", "a_b-c 'x''y'", "</s> <s>x"]
TRAINED = train_bpe(TEXTS, 290)


def test_every_text_comes_back_and_frequent_words_are_one_token():
    codec = Codec(TRAINED)
    for text in (*TEXTS, *ODD):
        assert codec.decode(codec.encode(text)) == text
    assert len(codec.encode(" player")) == 1
    assert len(codec.encode(" 12")) == 2, "digits stay apart"
    assert len(codec.tokens) == len(set(codec.tokens.values())) == 290


def test_pairs_are_joined_most_frequent_first_and_ties_by_the_alphabet():
    assert train_bpe(["ab ab cd"], 300).merges == (("a", "b"),), "of what comes twice"
    assert train_bpe(["zz zz aa aa"], 300).merges[:2] == (("a", "a"), ("z", "z"))
    assert train_bpe(["aaaa"], 300).merges == (("a", "a"), ("aa", "aa"))[:1]
    with pytest.raises(ValueError, match="at least 259 tokens, got 258"):
        train_bpe(TEXTS, len(SPECIAL) + len(ALPHABET) - 1)


def test_special_tokens_are_not_written():
    codec = Codec(Bpe(()))
    assert codec.decode([1, *codec.encode("a"), 2, 0, 999]) == "a"


def test_the_file_is_what_tokenizers_reads(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    own = own_tokenizer(TRAINED)
    for name, text in own.files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "config.json").write_text('{"eos_token_id": [2, 5]}')
    other = folder_tokenizer(tmp_path)
    plain = [text for text in (*TEXTS, *ODD) if "<" not in text]
    assert own.encode(plain) == other.encode(plain)
    assert other.decode(other.encode(plain)) == plain == own.decode(own.encode(plain))
    assert (other.begin, other.end) == (own.begin, own.end) == (1, 2)
    assert dict(other.tokens) == dict(own.tokens)
    assert (own.ends, other.ends) == ((2,), (2, 5))
    # The tokenizer's own is what answers that are learned from end with, wherever it is listed.
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 2]}')
    assert folder_tokenizer(tmp_path).ends == (2, 5)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert folder_tokenizer(tmp_path).ends == (5,)
    read = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert read.encode("x").ids == [1, *own.encode(["x"])[0]]
    # What is put behind a text begins none.
    for template, begin in (("$A </s>", None), ("<s> $A </s>", 1)):
        read.post_processor = tokenizers.processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        read.save(str(tmp_path / "tokenizer.json"))
        assert folder_tokenizer(tmp_path).begin == begin
