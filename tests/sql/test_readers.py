"""Layouts of Spider, its variants and BIRD, and one line for what isn't of them."""

from __future__ import annotations

import json

import pytest

from jaxmethods import sql
from tests.sql.small import make_database

ROW = {"db_id": "club", "query": "SELECT name FROM team", "question": "Which teams\nare there?"}


@pytest.fixture
def spider(tmp_path):
    make_database(tmp_path / "database" / "club" / "club.sqlite")
    make_database(tmp_path / "dev_databases" / "club" / "club.sqlite")
    return tmp_path


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content))


def test_spider_and_its_two_training_files(spider):
    write(spider, "train_spider.json", [ROW, ROW])
    write(spider, "train_others.json", [ROW])
    examples = sql.read_spider(spider, "train")
    assert [one.id for one in examples] == ["train_spider-0", "train_spider-1", "train_others-0"]
    assert examples[0].database == spider / "database" / "club" / "club.sqlite"
    assert examples[0].text == "Which teams are there?"


def test_synonyms(spider):
    row = {"db_id": "club", "query": "SELECT 1", "SpiderQuestion": "a", "SpiderSynQuestion": "b"}
    write(spider, "dev.json", [row])
    assert sql.read_spider(spider)[0].question == "b"
    assert sql.read_spider(spider, synonyms=False)[0].question == "a"


def test_bird(spider):
    row = {"db_id": "club", "SQL": "SELECT 1", "question": "q", "evidence": "e", "difficulty": "s"}
    write(spider, "dev.json", [row, row | {"evidence": ""}])
    with_evidence, without = sql.read_bird(spider)
    assert (with_evidence.text, without.text) == ("e q", "q")
    assert with_evidence.difficulty == "s"
    assert sql.read_bird(spider, evidence=False)[0].text == "q"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no rows"),
        ({}, "expected a list"),
        ([ROW, 3], "row 1: expected an object, got int"),
        ([ROW, ROW | {"query": None}], "row 1: query: expected a text, got None"),
        ([ROW, ROW | {"question": " "}], "row 1: question: expected a text"),
        ([ROW, ROW | {"db_id": "zoo"}], r"row 1: db_id 'zoo': there is no .*zoo\.sqlite"),
        ([ROW | {"db_id": "../club"}], "row 0: db_id"),
    ],
)
def test_what_is_no_question_is_one_line_that_says_where(spider, rows, message):
    write(spider, "dev.json", rows)
    with pytest.raises(sql.SqlError, match=message) as caught:
        sql.read_spider(spider)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(spider):
    with pytest.raises(sql.SqlError.__base__, match=r"dev\.json"):
        sql.read_spider(spider)
    (spider / "dev.json").write_text("[" * 100_000)
    with pytest.raises(sql.SqlError, match="not valid JSON"):
        sql.read_spider(spider)
    (spider / "dev.json").write_bytes(b"\xff")
    with pytest.raises(sql.SqlError, match="UTF-8"):
        sql.read_spider(spider)


def test_tables(spider):
    record = {
        "db_id": "club",
        "table_names_original": ["Team"],
        "column_names_original": [[-1, "*"], [0, "Name"]],
        "column_names": [[-1, "*"], [0, "full name"]],
        "foreign_keys": [[1, 1]],
    }
    write(spider, "tables.json", [record])
    assert sql.read_tables(spider / "tables.json")["club"]["foreign_keys"] == [[1, 1]]
    write(spider, "tables.json", [record | {"foreign_keys": [[1, 2]]}])
    with pytest.raises(sql.SqlError, match="row 0: foreign_keys"):
        sql.read_tables(spider / "tables.json")


def test_predictions(spider):
    (spider / "lines.txt").write_text("SELECT 1\tclub\nSELECT 2\n\nSELECT 4\n")
    assert sql.read_predictions(spider / "lines.txt") == ["SELECT 1", "SELECT 2", "", "SELECT 4"]
    bird = {"1": "SELECT 2\t----- bird -----\tclub", "0": "SELECT 1\t----- bird -----\tclub"}
    write(spider, "bird.json", bird)
    assert sql.read_predictions(spider / "bird.json") == ["SELECT 1", "SELECT 2"]
    write(spider, "bird.json", {"0": "a", "2": "b"})
    with pytest.raises(sql.SqlError, match="keys 0 to 1"):
        sql.read_predictions(spider / "bird.json")


def test_a_last_line_without_a_query_is_an_answer_too(spider):
    (spider / "lines.txt").write_text("SELECT 1\n\n\n")
    assert sql.read_predictions(spider / "lines.txt") == ["SELECT 1", "", ""]


def test_marks_of_windows_are_read_and_half_characters_are_named(spider):
    (spider / "dev.json").write_text(json.dumps([ROW]), encoding="utf-8-sig")
    assert len(sql.read_spider(spider)) == 1
    write(spider, "dev.json", [ROW | {"question": "who \ud83d?"}])
    with pytest.raises(sql.SqlError, match="row 0: question: expected a text, got half"):
        sql.read_spider(spider)
