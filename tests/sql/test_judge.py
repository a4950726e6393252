"""Reports, votes, prompts and fuzzed databases on a small database."""

from __future__ import annotations

import hashlib
import random

import pytest

from jaxmethods import sql
from jaxmethods.sql import serialization
from jaxmethods.sql.fuzz import literals_of
from jaxmethods.sql.judge import databases_beside, file_hash
from jaxmethods.sql.schema import Schema, Table, TableColumn
from tests.sql.small import TEXT2SQL, make_database, needs_text2sql

GOLD = [
    "SELECT name FROM player ORDER BY goals DESC LIMIT 1",
    "SELECT DISTINCT name FROM player",
    "SELECT T2.name , count(*) FROM player AS T1 JOIN team AS T2 ON T1.team_id = T2.team_id "
    "GROUP BY T2.name",
    'SELECT name FROM team WHERE city = "Rome"',
]
PREDICTED = [
    "SELECT name FROM player WHERE goals = (SELECT max(goals) FROM player)",
    "SELECT name FROM player",
    "SELECT nothing FROM player",
    "SELECT name FROM team WHERE city = 'Oslo'",
]


@pytest.fixture(scope="module")
def examples(database):
    return [sql.Example(str(n), "club", database, "", query) for n, query in enumerate(GOLD)]


def test_a_report(executor, examples, database):
    report = sql.Judge(executor).report(examples, PREDICTED)
    assert [verdict.execution for verdict in report.verdicts] == [True, True, False, False]
    assert [verdict.exact for verdict in report.verdicts] == [False, True, False, True]
    assert report.statuses == {"ok": 3, "error": 1}
    assert report.numbers["n"] == 4
    assert report.numbers["execution"] == 0.5
    assert report.numbers["execution_error"] == pytest.approx((0.25 / 3) ** 0.5)
    assert report.numbers["error_rate"] == 0.25
    digest = hashlib.sha256(database.read_bytes()).hexdigest()[:16]
    assert report.databases == {str(database): digest}
    with pytest.raises(sql.SqlError, match="4 examples"):
        sql.Judge(executor).report(examples, PREDICTED[:3])


def test_kept_distinct_makes_a_difference(executor, examples):
    report = sql.Judge(executor, keep_distinct=True).report(examples[1:2], PREDICTED[1:2])
    assert not report.verdicts[0].execution


def test_a_suite_of_databases_sees_what_one_does_not(executor, database, tmp_path):
    """Ana is the name of two players: two queries that agree by accident differ on copies."""
    gold, lucky = "SELECT name FROM player WHERE goals = 7", "SELECT 'Cy'"
    files = sql.fuzz_databases(database, tmp_path / "suite", 5, seed=1, queries=[gold])
    assert files == databases_beside(files[0])
    judge = sql.Judge(executor)
    assert judge.execution_match(files[:1], lucky, gold)[0]
    assert not judge.execution_match(files, lucky, gold)[0]
    assert judge.execution_match(files, gold, gold)[0]


def test_fuzzed_databases_keep_schema_and_keys(executor, database, tmp_path):
    before = file_hash(database)
    files = sql.fuzz_databases(database, tmp_path / "one", 3, seed=0, queries=GOLD)
    again = sql.fuzz_databases(database, tmp_path / "two", 3, seed=0, queries=GOLD)
    assert file_hash(database) == before == file_hash(files[0])
    rows = "SELECT * FROM player"
    results = [executor.execute(file, rows).rows for file in files]
    assert results == [executor.execute(file, rows).rows for file in again]
    assert len(set(results)) == len(files)
    for file in files:
        schema = sql.read_schema(executor, file)
        assert schema.names == sql.read_schema(executor, database).names
        lost = "SELECT * FROM player WHERE team_id NOT IN (SELECT team_id FROM team)"
        found = executor.execute(file, "SELECT team_id FROM player").rows
        assert {row[0] for row in found} <= {1, 2, 3}
        assert executor.execute(file, lost).ok
    assert literals_of(['SELECT "a" WHERE x > 3 AND y = 1.5']) == ["a", 3, 1.5]


def test_literals_are_what_queries_mean_by_them():
    """A quote within quotes is written twice; SQLite's numbers are decimal and have 64 bits."""
    assert literals_of(["SELECT 'O''Neil', \"a\"\"b\", '\"\"'"]) == ["O'Neil", 'a"b', '""']
    assert literals_of(["SELECT ² , 9223372036854775808 , 7 , .5"]) == [7, 0.5]


def test_databases_of_extreme_integers_and_other_encodings_are_fuzzed(executor, tmp_path):
    """Spider has a database whose texts aren't UTF-8; workers read them without such bytes."""
    largest = 2**63 - 1
    rows = ", ".join(
        f"({row}, {largest}, {-largest - 1}, CAST(x'4ae9' AS TEXT))" for row in range(9)
    )
    script = f"CREATE TABLE t (id INTEGER PRIMARY KEY, a, b, c); INSERT INTO t VALUES {rows};"
    files = sql.fuzz_databases(make_database(tmp_path / "t.sqlite", script), tmp_path / "s", 2, 0)
    found = executor.execute(files[-1], "SELECT a, b, c FROM t").rows
    assert len(found) > 3
    for a, b, c in found:
        assert a in (None, largest, largest - 1)
        assert b in (None, -largest - 1, -largest)
        assert c in (None, "J")


def test_the_first_beam_that_can_be_planned(executor, database):
    beams = ["SELEC 1", "SELECT nothing FROM team", "SELECT name FROM team", "SELECT 1"]
    assert sql.first_executable(executor, database, beams) == beams[2]
    assert sql.first_executable(executor, database, beams[:2]) == beams[0]
    assert sql.first_executable(executor, database, [" "]) == "SQL placeholder"


def test_a_vote_by_results(executor, database):
    several = ["SELECT 1", "SELECT name FROM team", "SELEC 1", "SELECT name FROM team WHERE 1"]
    assert sql.vote(executor, database, several) == (1, 2)
    assert sql.vote(executor, database, ["SELEC 1", "SELEC 2"]) == (0, 0)
    empty = ["SELECT 1 WHERE 0", "SELECT 2 WHERE 0", "SELECT 3"]
    assert sql.vote(executor, database, empty) == (2, 1)
    with pytest.raises(ValueError, match="candidates"):
        sql.vote(executor, database, [])


def test_a_prompt_says_what_the_question_mentions(executor, database):
    schema = sql.read_schema(executor, database)
    found = sql.match_contents(executor, database, schema, "Where do the lions of rome play?")
    assert found == {"team.name": ["Lions"], "team.city": ["Rome"]}
    prompt = sql.build_prompt(sql.schema_sequence(schema), "Which?\nAll.", found)
    assert prompt.endswith(
        "foreign keys :\nplayer.team_id = team.team_id\nmatched contents :\n"
        "team.name ( Lions )\nteam.city ( Rome )\nWhich? All.\n"
    )
    assert "table team , columns = [ team.team_id ( integer | primary key | values : 1 , 2 ) " in (
        prompt
    )


def test_a_compact_schema(executor, database):
    assert sql.compact_schema(sql.read_schema(executor, database)) == (
        "team ( team_id , name , city ) | "
        "player ( player_id , name , goals , weight , team_id -> team )"
    )


def test_names_with_special_characters_are_quoted(executor, database):
    schema = sql.read_schema(executor, database)
    column = schema.tables[0].columns[0]._replace(name="rating (%)")
    table = schema.tables[0]._replace(name="my table", columns=(column,))
    changed = schema._replace(tables=(table,), foreign_keys=())
    text = sql.schema_sequence(changed, {("my table", "rating (%)"): "how good"})
    assert "table `my table` , columns = [ `my table`.`rating (%)` ( integer | primary key" in text
    assert "comment : how good" in text
    query = serialization.quote_names("SELECT rating (%)\nFROM t WHERE `rating (%)` > 1", changed)
    assert query == "SELECT `rating (%)` FROM t WHERE `rating (%)` > 1"


def mutated(chance, query):
    """The query with a few characters or words deleted, doubled, swapped or replaced."""
    for _ in range(chance.randrange(1, 4)):
        place = chance.randrange(len(query) + 1)
        kind = chance.randrange(4)
        if kind == 0:
            query = query[:place] + query[place + 1 :]
        elif kind == 1:
            query = query[:place] + chance.choice("()'\";.,*=<>\x00é\ud800 -%9a") + query[place:]
        else:
            words = query.split(" ")
            one, other = chance.randrange(len(words)), chance.randrange(len(words))
            words[one] = words[other]
            query = " ".join(words)
    return query


def check_mutations(examples, count):
    """Every mutation gets a verdict, and the files stay what they are."""
    paths = {example.database for example in examples}
    before = {path: file_hash(path) for path in paths}
    chance = random.Random(0)
    several = [chance.choice(examples) for _ in range(count)]
    predictions = [mutated(chance, example.query) for example in several]
    with sql.Executor(sql.Limits(seconds=2.0, rows=5000)) as pool:
        report = sql.Judge(pool).report(several, predictions)
    assert report.numbers["n"] == count
    assert 0 < report.numbers["error_rate"] < 1
    assert 0 < report.numbers["execution"] < 1
    assert {path: file_hash(path) for path in paths} == before


def test_mutated_queries_raise_nothing(examples):
    check_mutations(examples, 300)


@needs_text2sql
@pytest.mark.slow
def test_ten_thousand_mutated_queries_raise_nothing():
    examples = [one for split in ("train", "dev") for one in sql.read_spider(TEXT2SQL, split)]
    check_mutations(examples, 10_000)


def test_names_within_names_and_in_texts_are_left_alone():
    columns = [
        TableColumn(name, "text", primary_key=False, values=())
        for name in ("meal count", "meal count (k-12)")
    ]
    own = Schema((Table("t", tuple(columns)),), ())
    asked = "SELECT Meal Count (K-12), t.meal count FROM t WHERE a = 'meal count'"
    assert serialization.quote_names(asked, own) == (
        "SELECT `Meal Count (K-12)`, t.`meal count` FROM t WHERE a = 'meal count'"
    )
