"""Question files in all their layouts, and what is wrong with one, line by line."""

from __future__ import annotations

import json

import pytest

from jaxmethods.data.mcq import McqError, in_source_order, read_questions
from jaxmethods.data.tokenizer import TokenizerError, byte_tokenizer, load_tokenizer

PLAIN = {"question": "Why?", "choices": ["so", "not so"], "label": 1}


def write(tmp_path, *rows, name="set.jsonl"):
    path = tmp_path / name
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def test_all_layouts_give_the_same_question(tmp_path):
    original = {"question": "Why?", "mc1_targets": {"so": 0, "not so": 1}}
    hub = {"question": "Why?", "mc1_targets": {"choices": ["so", "not so"], "labels": [0, 1]}}
    lines = read_questions(write(tmp_path, PLAIN, "", original, hub))
    array = tmp_path / "array.json"
    array.write_text(json.dumps([PLAIN, original, hub]))
    for questions in (lines, read_questions(array)):
        assert len({question[1:] for question in questions}) == 1
        assert questions[0].choices == ("so", "not so")
        assert questions[0].label == 1
        assert len({question.id for question in questions}) == 3


def test_the_order_of_the_source_is_found_again(tmp_path):
    row = {"question": "?", "choices": ["c", "a", "b"], "label": 2, "source_order": [2, 0, 1]}
    (question,) = read_questions(write(tmp_path, row))
    assert in_source_order(question).choices == ("a", "b", "c")
    assert in_source_order(question).label == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ("3", "line 2: expected an object, got int"),
        (PLAIN | {"choices": []}, "line 2: choices: expected at least one candidate"),
        (PLAIN | {"choices": ["a", " "]}, "line 2: choices: candidate 1 is empty"),
        (PLAIN | {"choices": "ab"}, "line 2: choices: expected a list of strings"),
        (PLAIN | {"label": 2}, "line 2: label: expected an index of 2 candidates, got 2"),
        (PLAIN | {"label": "b"}, "line 2: label: expected the index"),
        (PLAIN | {"question": None}, "line 2: question: expected a string"),
        (PLAIN | {"source_order": [0, 0]}, "line 2: source_order: expected a permutation"),
        ({"question": "?", "mc1_targets": {"a": 1, "b": 1}}, "exactly one right candidate"),
        (PLAIN | {"id": "set-0000"}, "id 'set-0000' is that of line 1 too"),
    ],
)
def test_a_bad_line_is_named(tmp_path, row, message):
    with pytest.raises(McqError, match=message):
        read_questions(write(tmp_path, PLAIN, row))


def test_no_file_and_an_empty_one_are_errors(tmp_path):
    with pytest.raises(McqError, match="cannot be read"):
        read_questions(tmp_path / "absent.jsonl")
    with pytest.raises(McqError, match="holds no questions"):
        read_questions(write(tmp_path, ""))


def test_bytes_are_tokens():
    assert byte_tokenizer(["a", "é"]) == [[1, 100], [1, 3 + 0xC3, 3 + 0xA9]]


def test_a_folder_without_tokenizer_says_what_is_missing(tmp_path):
    with pytest.raises(TokenizerError, match=r"holds no tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_model_folder_tokenizer_adds_its_first_token(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = {"<s>": 0, "a": 1, "b": 2, "[UNK]": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path)(["a b a", "b"]) == [[0, 1, 2, 1], [0, 2]]
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match="cannot be read"):
        load_tokenizer(tmp_path)
