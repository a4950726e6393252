"""Verdicts of the official evaluators on 436 predictions, and prompts byte by byte.

The files hold other people's questions and databases, so they are read from the folder that
`JAXMETHODS_SHARED` names, and the tests are skipped where it isn't there.
"""

from __future__ import annotations

import json

import pytest

from jaxmethods import sql
from jaxmethods.sql import serialization
from tests.sql.small import SHARED, TEXT2SQL, needs_text2sql

GOLDEN = SHARED / "golden" / "kid"


def read(name):
    return json.loads((GOLDEN / name).read_text())


def path_of(database_id):
    return TEXT2SQL / "database" / database_id / f"{database_id}.sqlite"


@pytest.fixture(scope="module")
def rows():
    return read("sql_eval.json")


def verdicts(executor, rows, **options):
    judge = sql.Judge(executor, tables=sql.read_tables(TEXT2SQL / "tables.json"), **options)
    examples = [
        sql.Example(str(n), row["db_id"], path_of(row["db_id"]), "", row["gold"])
        for n, row in enumerate(rows)
    ]
    return judge.report(examples, [row["pred"] for row in rows]).verdicts


def wrong(rows, found, **names):
    return [
        (row["mutation"], theirs, row["pred"])
        for row, verdict in zip(rows, found, strict=True)
        for ours, theirs in names.items()
        if getattr(verdict, ours) != row[theirs]
    ]


@needs_text2sql
def test_execution_hardness_and_bird(executor, rows):
    found = verdicts(executor, rows)
    assert not wrong(rows, found, execution="exec", hardness="hardness", bird="bird_ex")


@needs_text2sql
def test_execution_with_distinct(executor, rows):
    found = verdicts(executor, rows, keep_distinct=True)
    assert not wrong(rows, found, execution="exec_keep_distinct")


@needs_text2sql
def test_the_official_command_line(executor, rows):
    """Exact matches were stored as the command line gives them, after its replacement."""
    found = verdicts(executor, rows, official_cli_compat=True)
    assert not wrong(
        rows, found, execution="exec_official_cli", exact="exact", parsed="pred_parses"
    )


@needs_text2sql
def test_prompts_are_equal_byte_by_byte(executor):
    tables = sql.read_tables(TEXT2SQL / "tables.json")
    for row in read("prompts.json"):
        schema = sql.read_schema(executor, path_of(row["db_id"]))
        comments = serialization.comments_of(tables[row["db_id"]])
        text = sql.schema_sequence(schema, comments)
        assert text == row["schema_sequence"]
        assert sql.schema_sequence(schema) == row["schema_sequence_no_comments"]
        matched = serialization.content_sequence(row["matched_contents"])
        assert matched == row["matched_sequence"]
        assert serialization.content_sequence({}) == row["empty_matched_sequence"]
        assert sql.build_prompt(text, row["question"]) == row["prompt"]


@needs_text2sql
@pytest.mark.parametrize("split", ["train", "dev", "dev_seen", "dev_seen_syn"])
def test_every_gold_query_is_its_own_equal(executor, split):
    examples = sql.read_spider(TEXT2SQL, split)
    different = list({(one.database_id, one.query): one for one in examples}.values())
    report = sql.Judge(executor).report(different, [one.query for one in different])
    assert report.numbers["execution"] == report.numbers["exact"] == 1
