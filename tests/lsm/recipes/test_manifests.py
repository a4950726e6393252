"""Lists of recordings."""

from __future__ import annotations

import json

import pytest

from jaxmethods.errors import DataError
from jaxmethods.lsm.recipes.manifests import numbered_rows


def test_a_line_ends_where_a_line_feed_is_and_nowhere_else(tmp_path):
    """JSON doesn't escape U+2028, U+0085 and the like, which Python takes for ends of lines."""
    rows = [{"text": "one\u2028two\x85three"}, {"text": "\N{CJK UNIFIED IDEOGRAPH-4E2D}"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    file = tmp_path / "a.jsonl"
    file.write_text("\r\n\n".join(lines), encoding="utf-8-sig", newline="")
    assert list(numbered_rows(file)) == [(1, rows[0]), (3, rows[1])]


def test_a_line_that_is_nested_too_deeply_is_named(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("{}\n" + "[" * 100_000)
    with pytest.raises(DataError, match="line 2: is not valid JSON"):
        list(numbered_rows(file))


def test_half_a_character_is_no_text(tmp_path):
    """It would be an error of the tokenizer's, hours later; a whole one may be escaped."""
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "\\ud83d\\ude00"}\n{"text": "\\ud83d"}\n')
    rows = numbered_rows(file)
    assert next(rows) == (1, {"text": "\N{GRINNING FACE}"})
    with pytest.raises(DataError, match=r"line 2: .* half of a character"):
        next(rows)
