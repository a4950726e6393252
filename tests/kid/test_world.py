"""The generated world: what its splits promise, on a small cut of it."""

from __future__ import annotations

import collections
import json

import pytest

from jaxmethods import sql
from jaxmethods.kid import world
from jaxmethods.kid.world_databases import databases
from jaxmethods.kid.world_shapes import SHAPES

SIZES = world.Sizes(train=600, same=80, combine=80, unseen=60)
SPLITS = SIZES._fields


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("world") / "data"
    assert world.write_world(place, seed=0, sizes=SIZES) == SIZES._asdict()
    return place


@pytest.fixture(scope="module")
def splits(folder):
    return {split: sql.read_spider(folder, split) for split in SPLITS}


@pytest.fixture(scope="module")
def executor():
    with sql.Executor(sql.Limits(seconds=10)) as pool:
        yield pool


def test_every_gold_query_runs_finds_something_and_is_right(executor, folder, splits):
    judge = sql.Judge(executor, tables=sql.read_tables(folder / "tables.json"))
    for examples in splits.values():
        numbers = judge.report(examples, [example.query for example in examples]).numbers
        assert numbers["execution"] == numbers["bird"] == 1
        assert numbers["empty_gold"] == numbers["error_rate"] == 0


def test_constant_answers_score_nothing(executor, splits):
    judge = sql.Judge(executor)
    frequent: dict = {}
    for example in splits["train"]:
        frequent.setdefault(example.database_id, collections.Counter())[example.query] += 1
    common = {name: queries.most_common(1)[0][0] for name, queries in frequent.items()}
    examples = splits["same"]
    answers = [common[example.database_id] for example in examples]
    assert judge.report(examples, answers).numbers["execution"] <= 0.05
    assert judge.report(examples, ["SELECT 1"] * len(examples)).numbers["execution"] <= 0.05


def test_no_question_is_in_two_splits(splits):
    asked = [(one.database_id, one.question) for own in splits.values() for one in own]
    assert len(asked) == len(set(asked)) == sum(SIZES)


def test_databases_and_shapes(splits):
    every = [database.id for database in databases()]
    assert len(every) == 15
    assert len(SHAPES) >= 20
    assert {one.database_id for one in splits["train"]} == set(every[:12])
    assert {one.database_id for one in splits["unseen"]} == set(every[12:])


def test_held_out_combinations_are_of_seen_shapes_and_never_trained_on(folder):
    rows = {split: json.loads((folder / f"{split}.json").read_text()) for split in SPLITS}
    shapes = {split: {row["shape"] for row in own} for split, own in rows.items()}
    assert shapes["train"] == set(SHAPES)
    assert len(shapes["combine"]) > 12


def test_names_in_tables_json_are_those_of_the_files(executor, folder):
    records = sql.read_tables(folder / "tables.json")
    for name, record in records.items():
        schema = sql.read_schema(executor, folder / "database" / name / f"{name}.sqlite")
        columns = [(table.name, column.name) for table in schema.tables for column in table.columns]
        tables = record["table_names_original"]
        named = [(tables[table], own) for table, own in record["column_names_original"][1:]]
        assert named == columns
        assert sql.schema.tied_by_record(record) == schema.tied_columns


def test_the_same_seed_is_the_same_world(folder, tmp_path):
    small = world.Sizes(20, 5, 5, 5)
    texts = []
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        world.write_world(tmp_path / name, seed, small)
        texts.append((tmp_path / name / "train.json").read_text())
    assert texts[0] == texts[1] != texts[2]


def test_more_questions_than_there_are_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(world, "held_out", lambda *one: True)
    monkeypatch.setattr(world, "TRIES", 50)
    with pytest.raises(ValueError, match=r"sizes\.same: expected fewer than 10"):
        world.write_world(tmp_path / "w", sizes=world.Sizes(1, 10, 1, 1))
    assert not any((tmp_path / "w").iterdir())
