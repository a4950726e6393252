"""Exact set match and hardness: what counts as the same query, and what doesn't."""

from __future__ import annotations

import random
import re

import pytest

from jaxmethods.sql import exact_match, hardness, tokens
from jaxmethods.sql.matching import equivalent_columns
from jaxmethods.sql.parsing import Unparsable, parse

NAMES = {"team": ["team_id", "name", "city"], "player": ["player_id", "name", "goals", "team_id"]}
KEYS = {"player.team_id": "team.team_id", "team.team_id": "team.team_id"}
JOIN = "FROM player AS T1 JOIN team AS T2 ON T1.team_id = T2.team_id"

SAME = [
    ("SELECT name, city FROM team", "select city , name from team"),
    ("SELECT name FROM team WHERE city = 'a'", 'SELECT DISTINCT name FROM team WHERE city = "b"'),
    (
        "SELECT name FROM player WHERE goals > 1 AND name = 'x'",
        "SELECT name FROM player WHERE name = 'y' AND goals > 2",
    ),
    (f"SELECT T1.team_id {JOIN}", f"SELECT T2.team_id {JOIN}"),
    (
        "SELECT name FROM player ORDER BY goals LIMIT 1",
        "SELECT name FROM player ORDER BY goals ASC LIMIT 3",
    ),
    ("SELECT count(*) FROM team", "SELECT count(*) FROM team ;"),
]
OTHER = [
    ("SELECT name FROM team", "SELECT name FROM player"),
    ("SELECT max(goals) FROM player", "SELECT min(goals) FROM player"),
    ("SELECT name FROM player WHERE goals > 1", "SELECT name FROM player WHERE goals >= 1"),
    (
        "SELECT name FROM player WHERE goals > 1 OR name = 'x'",
        "SELECT name FROM player WHERE goals > 1 AND name = 'x'",
    ),
    ("SELECT name FROM player ORDER BY goals", "SELECT name FROM player ORDER BY goals DESC"),
    ("SELECT name FROM player ORDER BY goals", "SELECT name FROM player"),
    ("SELECT name FROM player GROUP BY name", "SELECT name FROM player GROUP BY goals"),
    (
        "SELECT name FROM player WHERE goals = (SELECT max(goals) FROM player)",
        "SELECT name FROM player WHERE goals = (SELECT min(goals) FROM player)",
    ),
    (
        "SELECT name FROM team UNION SELECT name FROM player",
        "SELECT name FROM team EXCEPT SELECT name FROM player",
    ),
    ("SELECT name FROM player", "SELECT nothing FROM player"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same_up_to_order_literals_distinct_and_keys(one, other):
    assert exact_match(one, other, NAMES, KEYS)
    assert exact_match(other, one, NAMES, KEYS)


@pytest.mark.parametrize(("gold", "predicted"), OTHER)
def test_not_the_same(gold, predicted):
    assert not exact_match(predicted, gold, NAMES, KEYS)


def test_tied_columns_are_one_only_with_their_keys():
    assert not exact_match(f"SELECT T1.team_id {JOIN}", f"SELECT T2.team_id {JOIN}", NAMES)


@pytest.mark.parametrize(
    ("query", "level"),
    [
        ("SELECT name FROM team", "easy"),
        ("SELECT name , goals FROM player WHERE goals > 1", "medium"),
        (f"SELECT T1.name {JOIN} WHERE T2.city = 'x' ORDER BY T1.goals", "hard"),
        ("SELECT name FROM player WHERE goals = (SELECT max(goals) FROM player)", "hard"),
        (f"SELECT T2.name , count(*) {JOIN} WHERE T1.goals > 1 GROUP BY T2.name LIMIT 1", "extra"),
        # A negated condition counts as an aggregate, beside count(*) as the second.
        ("SELECT count(*) FROM player WHERE name NOT LIKE 'x'", "medium"),
    ],
)
def test_hardness(query, level):
    assert hardness(parse(query, NAMES)) == level


def test_foreign_keys_join_the_first_group_they_touch():
    found = equivalent_columns(["a.x", "b.x", "c.x", "d.x"], [(1, 0), (2, 1), (3, 3)])
    assert found == {"a.x": "a.x", "b.x": "a.x", "c.x": "a.x", "d.x": "d.x"}


def test_words_are_those_of_the_treebank():
    found = tokens.words("SELECT T1.a,b FROM t WHERE x> = 'It, (is)' AND y=1;")
    start = ["select", "t1.a", ",", "b", "from", "t", "where", "x", ">="]
    assert found == [*start, '"It, (is)"', "and", "y=1", ";"]
    with pytest.raises(ValueError, match="even"):
        tokens.words("SELECT 'a")


def test_distinct_is_dropped_outside_of_literals_only():
    query = "SELECT DISTINCT count(distinct a) , 'distinct' , \"Distinct\" , distinct_x -- distinct"
    kept = "SELECT  count( a) , 'distinct' , \"Distinct\" , distinct_x -- distinct"
    assert tokens.remove_distinct(query) == kept
    operator = "SELECT a IS DISTINCT FROM b, a IS NOT DISTINCT FROM b"
    assert tokens.remove_distinct(operator) == operator
    assert tokens.replace_current_year("year( CURDATE() ) - 1") == "2020- 1"


def test_no_text_makes_the_parser_raise_anything_else():
    words = re.findall(r"\S+", " ".join(query for pair in SAME + OTHER for query in pair))
    chance = random.Random(0)
    understood = 0
    for _ in range(2000):
        text = " ".join(chance.choices(words, k=chance.randrange(1, 14)))
        try:
            parse(text, NAMES)
            understood += 1
        except Unparsable:
            pass
    assert understood < 2000
    with pytest.raises(Unparsable):
        parse("SELECT name FROM ( " * 5000, NAMES)
