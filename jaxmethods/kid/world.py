"""A generated text-to-SQL world, large enough to separate methods; nothing is downloaded.

Fifteen databases, thirty shapes of queries, and four splits in Spider's layout:

    train    8,000 questions on twelve databases
    same     1,000 others of the same distribution
    combine  1,000 whose shape and columns never occur together in `train`
    unseen     500 on three databases that are not trained on

Every gold query runs and finds something, and no question is in two splits. The published sets that
may be copied are far smaller: 275 different queries, with a standard error of six points.
"""

from __future__ import annotations

import json
import random
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxmethods.files import staged
from jaxmethods.kid.world_databases import Database, databases, write_database
from jaxmethods.kid.world_shapes import SHAPES, Asked, ask

UNSEEN = 3
"""Databases, the last ones, that are not trained on."""
HELD_OUT = 6
"""One in `HELD_OUT` combinations of shape and columns, on average, is not trained on."""
TRIES = 5000
"""Draws without a new question after which a world is called exhausted."""


class Sizes(NamedTuple):
    """Questions in each split."""

    train: int = 8000
    same: int = 1000
    combine: int = 1000
    unseen: int = 500


WHOLE = Sizes()


def write_world(
    folder: str | Path,
    seed: int = 0,
    sizes: Sizes = WHOLE,
    trained: int | None = None,
    shapes: int | None = None,
) -> dict[str, int]:
    """Writes databases, `tables.json` and a file of questions for each split.

    Args:
        folder: gets Spider's layout, whole or not at all; `sql.read_spider` reads it.
        seed: the same seed gives the same files.
        sizes: how many questions.
        trained: a smaller world has only this many databases beside the unseen ones.
        shapes: and only this many shapes of queries, evenly spaced among all.

    Returns:
        split -> questions.

    Raises:
        FileError: a file can't be written.
        ValueError: more questions than the world has.
    """
    every = databases()
    every = every[: len(every) - UNSEEN][:trained] + every[-UNSEEN:]
    with staged(Path(folder)) as place:
        for database in every:
            path = place / "database" / database.id / f"{database.id}.sqlite"
            path.parent.mkdir(parents=True)
            write_database(database, path, seed)
        runs = {one.id: place / "database" / one.id / f"{one.id}.sqlite" for one in every}
        splits = draw_questions(every, runs, seed, sizes, shapes)
        for name, rows in splits.items():
            (place / f"{name}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
        records = json.dumps([_record(one) for one in every], indent=1)
        (place / "tables.json").write_text(records, encoding="utf-8")
    return {name: len(rows) for name, rows in splits.items()}


def draw_questions(
    every: list[Database],
    paths: dict[str, Path],
    seed: int,
    sizes: Sizes,
    shapes: int | None = None,
) -> dict[str, list[dict[str, str]]]:
    """Questions of all splits, each once, as rows of Spider's files.

    Args:
        every: the databases; the last three are unseen.
        paths: id -> SQLite file, to see what a query finds.
        seed, sizes, shapes: see `write_world`.

    Returns:
        Split -> rows with `db_id`, `question` and `query`.

    Raises:
        ValueError: a split larger than what can be asked.
    """
    names = list(SHAPES)
    count = len(names) if shapes is None else shapes
    names = [names[place * len(names) // count] for place in range(count)]
    seen, unseen = every[:-UNSEEN], every[-UNSEEN:]
    known: set[tuple[str, str]] = set()

    def rows(name: str, size: int, own: list[Database], fits: Callable[..., bool]) -> list[Any]:
        chance, found, idle = random.Random(f"{seed}/{name}"), [], 0
        while len(found) < size:
            database = chance.choice(own)
            asked = ask(database, chance.choice(names), chance)
            idle += 1
            if idle > TRIES:
                raise ValueError(f"sizes.{name}: expected fewer than {size}, got all {len(found)}")
            fresh = (database.id, asked.question) not in known
            if fresh and fits(database, asked) and _finds(connections[database.id], asked):
                known.add((database.id, asked.question))
                found.append(_row(database, asked))
                idle = 0
        return found

    connections = {name: sqlite3.connect(path) for name, path in paths.items()}
    try:
        return {
            "combine": rows("combine", sizes.combine, seen, held_out),
            "same": rows("same", sizes.same, seen, lambda *one: not held_out(*one)),
            "train": rows("train", sizes.train, seen, lambda *one: not held_out(*one)),
            "unseen": rows("unseen", sizes.unseen, unseen, lambda *one: True),
        }
    finally:
        for connection in connections.values():
            connection.close()


def held_out(database: Database, asked: Asked) -> bool:
    """Whether a combination of shape and columns is kept from training; the same for every seed."""
    combination = "/".join((database.id, asked.shape, *asked.columns))
    return zlib.crc32(combination.encode()) % HELD_OUT == 0


def _finds(connection: sqlite3.Connection, asked: Asked) -> bool:
    """Whether the query finds something that doesn't hang on the order of equal rows."""
    found = connection.execute(asked.query).fetchall()
    if not found or all(cell is None for row in found for cell in row):
        return False
    if " LIMIT " not in asked.query:
        return True
    # Ties at the limit would make other engines, and other plans, give other rows.
    start, limit = asked.query.rsplit(" LIMIT ", 1)
    by = start.rsplit("ORDER BY ", 1)[1].removesuffix(" DESC")
    keys = start.replace(start[: start.index(" FROM ")], f"SELECT {by}", 1)
    ordered = connection.execute(keys).fetchall()
    number = int(limit)
    return len(ordered) <= number or ordered[number - 1] != ordered[number]


def _row(database: Database, asked: Asked) -> dict[str, str]:
    return {
        "db_id": database.id,
        "question": asked.question,
        "query": asked.query,
        "shape": asked.shape,
    }


def _record(database: Database) -> dict[str, Any]:
    """A record of Spider's `tables.json`."""
    tables = [database.parent, database.child]
    columns: list[tuple[int, str]] = [(-1, "*")]
    types = ["text"]
    for number, table in enumerate(tables):
        own = [one for one in database.columns if one.table == table]
        columns += [(number, f"{table}_id"), (number, "name")]
        columns += [(number, one.name) for one in own]
        types += ["number", "text", *("text" if one.options else "number" for one in own)]
    key = f"{database.parent}_id"
    columns.append((1, key))
    types.append("number")
    return {
        "db_id": database.id,
        "table_names": tables,
        "table_names_original": tables,
        "column_names": [[table, name.replace("_", " ")] for table, name in columns],
        "column_names_original": [[table, name] for table, name in columns],
        "column_types": types,
        "primary_keys": [columns.index((n, f"{table}_id")) for n, table in enumerate(tables)],
        "foreign_keys": [[len(columns) - 1, columns.index((0, key))]],
    }
