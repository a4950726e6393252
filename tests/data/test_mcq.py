"""Question files in all their layouts, and what is wrong with one, line by line."""

from __future__ import annotations

import json

import pytest

from jaxmethods.data.mcq import McqError, in_source_order, read_questions
from jaxmethods.data.tokenizer import (
    TokenizerError,
    byte_tokenizer,
    folder_tokenizer,
    load_tokenizer,
)

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


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (PLAIN | {"source_order": ["a", 1]}, "source_order: expected a permutation of 2 places"),
        (PLAIN | {"source_order": 5}, "source_order: expected a permutation of 2 places, got 5"),
        (PLAIN | {"source_order": [1.0, 0.0]}, "source_order: expected a permutation"),
        (PLAIN | {"source_order": [True, False]}, "source_order: expected a permutation"),
        (PLAIN | {"source_order": {"0": 0, "1": 1}}, "source_order: expected a permutation"),
        (PLAIN | {"source_order": "01"}, "source_order: expected a permutation"),
        (PLAIN | {"source_order": [1]}, "source_order: expected a permutation"),
        (PLAIN | {"context": 5}, "context: expected a string, got 5"),
        (PLAIN | {"target": ["so"]}, "target: expected a string"),
        (PLAIN | {"context": "\ud800"}, "context: expected text, got the lone surrogate"),
        (PLAIN | {"choices": ["a", "\udc00"]}, "choices: expected text, got the lone surrogate"),
        (PLAIN | {"id": ["a"]}, "id: expected a string or a number, got"),
        (PLAIN | {"id": True}, "id: expected a string or a number, got True"),
        (PLAIN | {"id": float("nan")}, "id: expected a string or a number, got nan"),
        (PLAIN | {"label": True}, "label: expected the index of the right candidate, got True"),
        (PLAIN | {"label": 1.0}, "label: expected the index of the right candidate, got 1.0"),
        (PLAIN | {"label": "1"}, "label: expected the index of the right candidate, got '1'"),
        (PLAIN | {"label": None}, "label: expected the index of the right candidate, got None"),
        (PLAIN | {"label": float("nan")}, "label: expected the index"),
        (PLAIN | {"label": -1}, "label: expected an index of 2 candidates, got -1"),
        (PLAIN | {"label": 10**40}, "label: expected an index of 2 candidates, got 10000"),
        (PLAIN | {"choices": ["a", 1]}, "choices: expected a list of strings"),
        (PLAIN | {"choices": ["a", None]}, "choices: expected a list of strings"),
        (PLAIN | {"mc1_targets": {"so": 1, "not so": 0}}, "choices: expected those of mc1_targets"),
        ({"question": "?", "mc1_targets": {"a": "1", "b": ""}}, "0 or 1 for a candidate, got '1'"),
        ({"question": "?", "mc1_targets": {"a": 1, "b": 2}}, "0 or 1 for a candidate, got 2"),
        ({"question": "?", "mc1_targets": {"a": 1, "b": None}}, "0 or 1 for a candidate, got None"),
        ({"question": "?", "mc1_targets": {"a": 1, "b": [0]}}, "0 or 1 for a candidate, got "),
        ({"question": "?", "mc1_targets": {"a": 0, "b": 0}}, "one right candidate, got 0"),
        ({"question": "?", "mc1_targets": [1, 0]}, "mc1_targets: expected an object, got"),
        (
            '{"question": "q", "mc1_targets": {"same": 1, "same": 0, "other": 1}}',
            "line 2: expected every key once, got 'same' twice",
        ),
        (
            '{"question": "q", "choices": ["a", "b"], "label": 0, "label": 1}',
            "line 2: expected every key once, got 'label' twice",
        ),
        ('{"question": "q", "choices": ["a", "b"], "label": ' + "1" * 5000 + "}", "line 2: "),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_what_is_malformed_is_named_and_never_guessed(tmp_path, row, message):
    with pytest.raises(McqError) as error:
        read_questions(write(tmp_path, PLAIN, row))
    assert message in str(error.value)
    assert len(str(error.value)) < 500


def test_an_array_is_read_as_strictly_as_lines(tmp_path):
    twice = '[{"question": "q", "choices": ["a", "b"], "label": 0, "label": 1}]'
    for content, message in ((twice, "'label' twice"), ("[" * 100_000, "nested too deeply")):
        with pytest.raises(McqError, match=message):
            read_questions(write(tmp_path, content))


def test_null_is_absent_where_a_field_is_optional(tmp_path):
    """As tables are written: every row has every column."""
    nothing = dict.fromkeys(("id", "context", "target", "source_order", "mc1_targets"))
    first, second = read_questions(write(tmp_path, PLAIN | nothing, PLAIN | nothing))
    assert first == read_questions(write(tmp_path, PLAIN))[0]
    assert (first.id, second.id) == ("set-0000", "set-0001")


def test_ids_may_be_numbers(tmp_path):
    found = read_questions(write(tmp_path, PLAIN | {"id": 7}, PLAIN | {"id": 10**20}))
    assert [question.id for question in found] == ["7", str(10**20)]


def test_equal_candidates_stay_as_they_are(tmp_path):
    """Data sets have them, the right one among them."""
    (found,) = read_questions(write(tmp_path, PLAIN | {"choices": ["a", "b", "a"], "label": 2}))
    assert (found.choices, found.label) == (("a", "b", "a"), 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xef\xbb\xbf" + json.dumps(PLAIN).encode(), "byte-order mark"),
        (json.dumps(PLAIN).encode("utf-16"), "is not UTF-8 text"),
        (json.dumps(PLAIN | {"question": "\u00e9"}, ensure_ascii=False).encode("latin-1"), "UTF-8"),
        (b"\x1f\x8b\x08\x00", "is not UTF-8 text"),
    ],
)
def test_other_encodings_are_named(tmp_path, content, message):
    path = tmp_path / "set.jsonl"
    path.write_bytes(content)
    with pytest.raises(McqError, match=message):
        read_questions(path)


def test_no_file_and_an_empty_one_are_errors(tmp_path):
    with pytest.raises(McqError, match="cannot be read"):
        read_questions(tmp_path / "absent.jsonl")
    with pytest.raises(McqError, match="holds no questions"):
        read_questions(write(tmp_path, ""))


def test_bytes_are_tokens():
    assert byte_tokenizer(["a", "é"]) == [[1, 100], [1, 3 + 0xC3, 3 + 0xA9]]


def test_a_folder_without_tokenizer_says_what_is_missing(tmp_path):
    with pytest.raises(TokenizerError, match="absent: not a folder; nothing is downloaded"):
        load_tokenizer(tmp_path / "absent")
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


def test_what_a_tokenizer_says_is_utf_8_whatever_the_machine_speaks(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = {"é": 0, "<end>": 1}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words)).save(str(tmp_path / "tokenizer.json"))
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text('{"eos_token": "é"}', encoding="utf-8")
    found = folder_tokenizer(tmp_path)
    assert found.end == 0
    assert found.files["tokenizer_config.json"] == '{"eos_token": "é"}'
    for content, message in (
        ('{"eos_token": "é"}'.encode("latin-1"), "is not UTF-8 text"),
        (b"[" * 100_000, "is not a JSON object"),
    ):
        settings.write_bytes(content)
        with pytest.raises(TokenizerError, match=message):
            folder_tokenizer(tmp_path)
