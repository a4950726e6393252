"""Further databases with the schema and keys of one, for a stricter test than one database is.

Two queries that happen to agree on one database rarely agree on ten. The official distilled test
suites can't be made offline; these are ours, and scores on them are called TS-fuzz.

Each new database keeps tables, keys and the pairs that keys tie. Other cells are, by chance, those
of another row, moved a little (numbers), replaced by a literal of the gold queries or its neighbor,
or NULL where the column allows it; some rows are left out and some come twice.
"""

from __future__ import annotations

import random
import re
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from jaxmethods.errors import UserError
from jaxmethods.files import refusals, staged
from jaxmethods.sql.tokens import LITERALS_AND_WORDS

SWAPPED, MOVED, LITERAL, ABSENT, DROPPED, DOUBLED = 0.5, 0.2, 0.15, 0.03, 0.1, 0.1
"""Chances of a cell, and (the last two) of a row."""

DECIMAL = re.compile(r"[0-9]+\.?[0-9]*|\.[0-9]+")
LARGEST = 2.0**63
"""SQLite's integers are below this; larger ones are floats there."""


class _Column(NamedTuple):
    name: str
    free: bool
    """Neither key nor tied to one."""
    nullable: bool


def fuzz_databases(
    database: str | Path,
    folder: str | Path,
    count: int,
    seed: int,
    queries: Sequence[str] = (),
) -> list[Path]:
    """Writes `count` changed copies of a database beside an unchanged one.

    Args:
        database: a SQLite file, which is only read.
        folder: where the files are written, whole or not at all.
        count: of changed copies.
        seed: the same seed gives the same cells.
        queries: gold queries, whose literals become cells.

    Returns:
        the paths, the unchanged copy first.

    Raises:
        UserError: the database can't be read, or a file can't be written.
    """
    database, folder = Path(database), Path(folder)
    literals = literals_of(queries)
    names = [database.name, *(f"{database.stem}_fuzz{n}.sqlite" for n in range(count))]
    with refusals(database, "read"), staged(folder) as place:
        for number, name in enumerate(names):
            shutil.copyfile(database, place / name)
            if number:
                try:
                    _change(place / name, random.Random(f"{seed}/{number}"), literals)
                except sqlite3.Error as error:
                    raise UserError(f"database {database}: cannot be changed ({error})") from error
    return [folder / name for name in names]


def literals_of(queries: Sequence[str]) -> list[Any]:
    """Texts and numbers that stand in queries, each once."""
    found: dict[Any, None] = {}
    for query in queries:
        for match in LITERALS_AND_WORDS.finditer(query):
            mark = match[0][0]
            if mark in "'\"":  # within its quotes, a quote is written twice
                found[match[0][1:-1].replace(2 * mark, mark).replace("%", "")] = None
        for word in query.replace("(", " ").replace(")", " ").split():
            if DECIMAL.fullmatch(word) and float(word) < LARGEST:
                found[float(word) if "." in word else int(word)] = None
    return list(found)


def _change(path: Path, chance: random.Random, literals: Sequence[Any]) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.text_factory = lambda text: text.decode(errors="ignore")  # as workers read them
        connection.execute("PRAGMA foreign_keys = OFF")
        names = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        ).fetchall()
        columns = {name: _columns(connection, name, [one for (one,) in names]) for (name,) in names}
        for table, found in columns.items():
            _change_table(connection, table, found, chance, literals)
        connection.commit()
        connection.execute("VACUUM")


def _columns(connection: sqlite3.Connection, table: str, tables: Sequence[str]) -> list[_Column]:
    tied = {key[3].lower() for key in _keys(connection, table)}
    for other in tables:
        tied |= {
            (key[4] or "").lower()
            for key in _keys(connection, other)
            if key[2].lower() == table.lower()
        }
    listed = connection.execute(f"PRAGMA table_info({_quoted(table)})").fetchall()
    return [
        _Column(name, not key and name.lower() not in tied, not required)
        for _, name, _, required, _, key in listed
    ]


def _change_table(
    connection: sqlite3.Connection,
    table: str,
    columns: Sequence[_Column],
    chance: random.Random,
    literals: Sequence[Any],
) -> None:
    named = ", ".join(_quoted(column.name) for column in columns)
    rows = connection.execute(f"SELECT {named} FROM {_quoted(table)}").fetchall()
    values = list(zip(*rows, strict=True))
    changed = []
    for row in rows:
        if chance.random() < DROPPED:
            continue
        new = tuple(
            _cell(cell, values[place], column, chance, literals) if column.free else cell
            for place, (cell, column) in enumerate(zip(row, columns, strict=True))
        )
        changed += [new, new] if chance.random() < DOUBLED else [new]
    connection.execute(f"DELETE FROM {_quoted(table)}")
    marks = ", ".join("?" * len(columns))
    insert = f"INSERT OR IGNORE INTO {_quoted(table)} ({named}) VALUES ({marks})"
    # A row that comes twice is dropped where a key forbids it.
    connection.executemany(insert, changed)


def _cell(
    cell: Any,
    others: Sequence[Any],
    column: _Column,
    chance: random.Random,
    literals: Sequence[Any],
) -> Any:
    if column.nullable and chance.random() < ABSENT:
        return None
    if chance.random() < SWAPPED:
        cell = chance.choice(others)
    same = [literal for literal in literals if _alike(literal, cell)]
    if same and chance.random() < LITERAL:
        cell = chance.choice(same)
    if isinstance(cell, int | float) and chance.random() < MOVED:
        moved = cell + chance.choice((-1, 1))
        return moved if -LARGEST <= moved < LARGEST else cell
    return cell


def _alike(literal: Any, cell: Any) -> bool:
    number = isinstance(literal, int | float)
    return isinstance(cell, int | float) if number else isinstance(cell, str)


def _keys(connection: sqlite3.Connection, table: str) -> list[Any]:
    return connection.execute(f"PRAGMA foreign_key_list({_quoted(table)})").fetchall()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
