"""What is asked in the generated world: thirty shapes of queries, each in several wordings."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from jaxmethods.kid.world_databases import Column, Database


class Asked(NamedTuple):
    """A question, its query, and which columns the shape was filled with."""

    shape: str
    columns: tuple[str, ...]
    """"table.column", of what the shape is about: held-out combinations are of these."""
    question: str
    query: str


class Draw(NamedTuple):
    """What a shape is filled with."""

    table: str
    other: str
    """The other table."""
    text: Column
    number: Column
    second: Column
    """Another number of the same table."""
    value: str
    value2: str
    low: int
    high: int
    k: int
    key: str
    """The column that ties both tables."""
    parent: str
    child: str
    parent_text: Column
    parent_value: str
    child_text: Column
    child_value: str


Shape = Callable[[Draw], tuple[tuple[Column, ...], tuple[str, ...], str]]
"""Draw -> (columns, wordings, query)."""


def _join(d: Draw) -> str:
    return f"{d.child} AS T1 JOIN {d.parent} AS T2 ON T1.{d.key} = T2.{d.key}"


def _by_count(d: Draw) -> str:
    return f"GROUP BY {d.text.name} ORDER BY count(*) DESC LIMIT 1"


SHAPES: dict[str, Shape] = {
    "list": lambda d: (
        (d.number,),
        (
            f"list the {d.number.name} of all {d.table}s",
            f"show every {d.table} 's {d.number.name}",
        ),
        f"SELECT {d.number.name} FROM {d.table}",
    ),
    "list_two": lambda d: (
        (d.text, d.number),
        (
            f"list {d.text.name} and {d.number.name} of all {d.table}s",
            f"what are the {d.text.name} and the {d.number.name} of each {d.table}",
        ),
        f"SELECT {d.text.name} , {d.number.name} FROM {d.table}",
    ),
    "equal": lambda d: (
        (d.text,),
        (
            f"names of {d.table}s with {d.text.name} {d.value}",
            f"which {d.table}s have the {d.text.name} {d.value}",
        ),
        f"SELECT name FROM {d.table} WHERE {d.text.name} = '{d.value}'",
    ),
    "not_equal": lambda d: (
        (d.text,),
        (f"names of {d.table}s whose {d.text.name} is not {d.value}",),
        f"SELECT name FROM {d.table} WHERE {d.text.name} != '{d.value}'",
    ),
    "above": lambda d: (
        (d.number,),
        (
            f"names of {d.table}s with {d.number.name} above {d.low}",
            f"which {d.table}s have more than {d.low} {d.number.name}",
        ),
        f"SELECT name FROM {d.table} WHERE {d.number.name} > {d.low}",
    ),
    "below": lambda d: (
        (d.number, d.second),
        (f"{d.second.name} of {d.table}s with {d.number.name} below {d.high}",),
        f"SELECT {d.second.name} FROM {d.table} WHERE {d.number.name} < {d.high}",
    ),
    "between": lambda d: (
        (d.number,),
        (f"names of {d.table}s with {d.number.name} from {d.low} to {d.high}",),
        f"SELECT name FROM {d.table} WHERE {d.number.name} BETWEEN {d.low} AND {d.high}",
    ),
    "both": lambda d: (
        (d.text, d.number),
        (
            f"names of {d.table}s with {d.text.name} {d.value} and {d.number.name} above {d.low}",
            f"which {d.value} {d.table}s have a {d.number.name} over {d.low}",
        ),
        f"SELECT name FROM {d.table} WHERE {d.text.name} = '{d.value}' "
        f"AND {d.number.name} > {d.low}",
    ),
    "either": lambda d: (
        (d.text, d.number),
        (f"names of {d.table}s with {d.text.name} {d.value} or {d.number.name} above {d.high}",),
        f"SELECT name FROM {d.table} WHERE {d.text.name} = '{d.value}' "
        f"OR {d.number.name} > {d.high}",
    ),
    "either_text": lambda d: (
        (d.text, d.number),
        (f"{d.number.name} of {d.table}s with {d.text.name} {d.value} or {d.value2}",),
        f"SELECT {d.number.name} FROM {d.table} WHERE {d.text.name} = '{d.value}' "
        f"OR {d.text.name} = '{d.value2}'",
    ),
    "count_equal": lambda d: (
        (d.text,),
        (
            f"how many {d.table}s have {d.text.name} {d.value}",
            f"number of {d.table}s whose {d.text.name} is {d.value}",
        ),
        f"SELECT count(*) FROM {d.table} WHERE {d.text.name} = '{d.value}'",
    ),
    "count_above": lambda d: (
        (d.number,),
        (f"how many {d.table}s have {d.number.name} above {d.low}",),
        f"SELECT count(*) FROM {d.table} WHERE {d.number.name} > {d.low}",
    ),
    "average": lambda d: (
        (d.number, d.text),
        (
            f"average {d.number.name} of {d.table}s with {d.text.name} {d.value}",
            f"what is the mean {d.number.name} of {d.value} {d.table}s",
        ),
        f"SELECT avg({d.number.name}) FROM {d.table} WHERE {d.text.name} = '{d.value}'",
    ),
    "extremes": lambda d: (
        (d.number,),
        (f"smallest and largest {d.number.name} of all {d.table}s",),
        f"SELECT min({d.number.name}) , max({d.number.name}) FROM {d.table}",
    ),
    "sum": lambda d: (
        (d.number, d.second),
        (f"total {d.number.name} of {d.table}s with {d.second.name} above {d.low}",),
        f"SELECT sum({d.number.name}) FROM {d.table} WHERE {d.second.name} > {d.low}",
    ),
    "distinct": lambda d: (
        (d.text, d.number),
        (f"different {d.text.name} of {d.table}s with {d.number.name} above {d.low}",),
        f"SELECT DISTINCT {d.text.name} FROM {d.table} WHERE {d.number.name} > {d.low}",
    ),
    "count_distinct": lambda d: (
        (d.number, d.text),
        (f"how many different {d.number.name} do {d.table}s with {d.text.name} {d.value} have",),
        f"SELECT count(DISTINCT {d.number.name}) FROM {d.table} WHERE {d.text.name} = '{d.value}'",
    ),
    "group_count": lambda d: (
        (d.text, d.number),
        (f"number of {d.table}s with {d.number.name} above {d.low} for each {d.text.name}",),
        f"SELECT {d.text.name} , count(*) FROM {d.table} WHERE {d.number.name} > {d.low} "
        f"GROUP BY {d.text.name}",
    ),
    "group_average": lambda d: (
        (d.text, d.number),
        (f"average {d.number.name} of {d.table}s for each {d.text.name}",),
        f"SELECT {d.text.name} , avg({d.number.name}) FROM {d.table} GROUP BY {d.text.name}",
    ),
    "having": lambda d: (
        (d.text,),
        (f"{d.text.name} that more than {d.k} {d.table}s have",),
        f"SELECT {d.text.name} FROM {d.table} GROUP BY {d.text.name} HAVING count(*) > {d.k}",
    ),
    "order": lambda d: (
        (d.number, d.text),
        (f"{d.number.name} of {d.table}s with {d.text.name} {d.value} from high to low",),
        f"SELECT {d.number.name} FROM {d.table} WHERE {d.text.name} = '{d.value}' "
        f"ORDER BY {d.number.name} DESC",
    ),
    "top": lambda d: (
        (d.number,),
        (
            f"names of the {d.k} {d.table}s with the largest {d.number.name}",
            f"which {d.k} {d.table}s have the highest {d.number.name}",
        ),
        f"SELECT name FROM {d.table} ORDER BY {d.number.name} DESC LIMIT {d.k}",
    ),
    "most_common": lambda d: (
        (d.text, d.number),
        (f"most common {d.text.name} of {d.table}s with {d.number.name} above {d.low}",),
        f"SELECT {d.text.name} FROM {d.table} WHERE {d.number.name} > {d.low} {_by_count(d)}",
    ),
    "join": lambda d: (
        (d.child_text, d.parent_text),
        (
            f"names of {d.child}s whose {d.parent} has {d.parent_text.name} {d.parent_value}",
            f"which {d.child}s belong to a {d.parent} with {d.parent_text.name} {d.parent_value}",
        ),
        f"SELECT T1.name FROM {_join(d)} WHERE T2.{d.parent_text.name} = '{d.parent_value}'",
    ),
    "join_list": lambda d: (
        (d.child_text, d.parent_text),
        (
            f"{d.parent_text.name} of the {d.parent}s of {d.child}s with {d.child_text.name} "
            f"{d.child_value}",
        ),
        f"SELECT T2.{d.parent_text.name} FROM {_join(d)} "
        f"WHERE T1.{d.child_text.name} = '{d.child_value}'",
    ),
    "join_count": lambda d: (
        (d.child_text, d.parent_text),
        (
            f"number of {d.child}s with {d.child_text.name} {d.child_value} for each {d.parent} "
            f"{d.parent_text.name}",
        ),
        f"SELECT T2.{d.parent_text.name} , count(*) FROM {_join(d)} "
        f"WHERE T1.{d.child_text.name} = '{d.child_value}' GROUP BY T2.{d.parent_text.name}",
    ),
    "largest": lambda d: (
        (d.number, d.text),
        (f"{d.text.name} of the {d.table}s with the largest {d.number.name}",),
        f"SELECT {d.text.name} FROM {d.table} WHERE {d.number.name} = "
        f"( SELECT max({d.number.name}) FROM {d.table} )",
    ),
    "above_average": lambda d: (
        (d.number, d.text),
        (f"names of {d.value} {d.table}s with {d.number.name} above the average of all",),
        f"SELECT name FROM {d.table} WHERE {d.text.name} = '{d.value}' AND {d.number.name} > "
        f"( SELECT avg({d.number.name}) FROM {d.table} )",
    ),
    "in": lambda d: (
        (d.child_text,),
        (f"names of {d.parent}s that have a {d.child} with {d.child_text.name} {d.child_value}",),
        f"SELECT name FROM {d.parent} WHERE {d.key} IN ( SELECT {d.key} FROM {d.child} "
        f"WHERE {d.child_text.name} = '{d.child_value}' )",
    ),
    "absent": lambda d: (
        (d.number,),
        (f"names of {d.table}s whose {d.number.name} is not known",),
        f"SELECT name FROM {d.table} WHERE {d.number.name} IS NULL",
    ),
}


def ask(database: Database, shape: str, chance: random.Random) -> Asked:
    """A question of a shape about a database; whether anything is found is the caller's to see."""
    draw = _draw(database, chance)
    columns, wordings, query = SHAPES[shape](draw)
    places = tuple(f"{column.table}.{column.name}" for column in columns)
    return Asked(shape, places, chance.choice(wordings), query)


def _draw(database: Database, chance: random.Random) -> Draw:
    parent, child = database.parent, database.child
    table = chance.choice((parent, child))
    number, second = chance.sample(database.numbers(table), 2)
    text = chance.choice(database.texts(table))
    value, value2 = chance.sample(text.options, 2)
    span = number.most - number.least
    low, high = sorted(number.least + span * part // 12 for part in chance.sample(range(1, 12), 2))
    parent_text = chance.choice(database.texts(parent))
    child_text = chance.choice(database.texts(child))
    return Draw(
        table=table,
        other=child if table == parent else parent,
        text=text,
        number=number,
        second=second,
        value=value,
        value2=value2,
        low=low,
        high=high,
        k=chance.randint(2, 6),
        key=f"{parent}_id",
        parent=parent,
        child=child,
        parent_text=parent_text,
        parent_value=chance.choice(parent_text.options),
        child_text=child_text,
        child_value=chance.choice(child_text.options),
    )
