"""Fifteen small databases of the generated world: two tables each, tied by a key.

Columns of one table have near-synonymous names (`price` and `cost`), cells may be NULL, rows may
come twice under another key, and numbers are often equal, as in databases that people keep.
"""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

# id: parent table, its columns; child table, its columns. NAME=a|b is one of the texts, NAME:a-b a
# whole number; every table has a name as well.
SPECIFICATION = """
league: team city=rome|oslo|lima|cairo|quito founded:1890-1990 budget:10-90 cost:5-80;
  player position=keeper|defender|forward|wing goals:0-30 points:0-60 age:17-40
school: teacher subject=math|music|art|history|sport age:24-65 salary:20-90 bonus:0-15;
  pupil city=bonn|kiel|ulm|trier grade:1-6 score:0-100 absence:0-30
clinic: doctor field=heart|skin|eye|bone age:30-70 fee:20-200 experience:1-40;
  patient ward=north|south|east|west age:1-95 weight:5-120 height:50-205
shop: maker country=peru|chile|japan|kenya|spain founded:1900-2015 staff:5-500 revenue:1-99;
  product color=red|blue|green|black|white price:1-90 cost:1-80 stock:0-200
airline: airport country=india|brazil|egypt|canada gates:2-90 runways:1-6 opened:1930-2015;
  flight plane=jet|glider|prop|cargo distance:100-9000 duration:30-900 seats:4-400
museum: artist style=cubist|baroque|modern|gothic born:1500-1980 works:1-200 prizes:0-12;
  painting room=hall|attic|cellar|annex year:1520-2015 width:10-300 value:1-99
library: author country=france|ghana|italy|cuba born:1800-1990 books:1-60 awards:0-9;
  book genre=crime|poetry|travel|science pages:40-900 copies:1-30 loans:0-250
farm: field soil=clay|sand|loam|peat area:1-90 slope:0-30 yield:5-99;
  animal kind=goat|cow|hen|sheep weight:1-900 age:0-20 milk:0-40
band: singer country=wales|malta|nepal|qatar age:18-75 albums:1-25 tours:0-30;
  song mood=calm|sad|happy|loud length:60-600 plays:0-999 year:1970-2024
city: district side=north|south|east|west people:100-9000 area:1-80 parks:0-20;
  house type=villa|flat|cabin|loft rooms:1-12 price:20-900 rent:1-50
game: studio country=korea|sweden|poland|usa staff:2-400 founded:1980-2020 games:1-60;
  title genre=puzzle|racing|strategy|arcade price:0-80 sales:1-999 rating:1-10
bank: branch town=york|bath|leeds|derby staff:3-90 opened:1880-2015 loans:0-300;
  client level=basic|silver|gold|black age:18-95 income:5-250 debt:0-200
zoo: keeper zone=bird|cat|fish|ape age:19-65 salary:15-60 shifts:1-14;
  creature food=meat|seed|leaf|krill weight:1-900 age:0-60 visits:0-500
cinema: director country=ireland|iran|mexico|greece born:1930-1995 films:1-50 prizes:0-15;
  film genre=drama|comedy|horror|western length:60-240 budget:1-300 gross:0-900
hotel: owner country=norway|turkey|cyprus|fiji age:25-80 hotels:1-30 wealth:1-900;
  guest meal=none|breakfast|half|full nights:1-30 bill:20-900 age:1-95
"""
SYLLABLES = [one + other for one, other in zip("bcdfghklmnprstvw", "aeiou" * 4, strict=False)]
PARENTS, CHILDREN = (12, 18), (30, 45)
"""Rows of the tables, from and to."""
ABSENT, TWICE = 0.05, 0.1


class Column(NamedTuple):
    """A column of the world."""

    table: str
    name: str
    options: tuple[str, ...] = ()
    """Texts; empty for numbers."""
    least: int = 0
    most: int = 0


class Database(NamedTuple):
    """What a database is made of."""

    id: str
    parent: str
    child: str
    columns: tuple[Column, ...]
    """But for keys and names."""

    def texts(self, table: str) -> list[Column]:
        """Columns of a few texts."""
        return [one for one in self.columns if one.table == table and one.options]

    def numbers(self, table: str) -> list[Column]:
        """Columns of whole numbers."""
        return [one for one in self.columns if one.table == table and not one.options]


def databases() -> list[Database]:
    """All of them, in their order; the last are those that are never trained on."""
    found = []
    for entry in SPECIFICATION.replace(";\n ", ";").strip().splitlines():
        name, rest = entry.split(": ", 1)
        tables, columns = [], []
        for part in rest.split("; "):
            table, *specifications = part.split(" ")
            tables.append(table)
            columns += [_column(table, one) for one in specifications]
        found.append(Database(name, tables[0], tables[1], tuple(columns)))
    return found


def write_database(database: Database, path: Path, seed: int) -> None:
    """Writes a SQLite file; the same seed gives the same rows."""
    chance = random.Random(f"{seed}/{database.id}")
    parent, child = database.parent, database.child
    parents = _rows(database, parent, chance, chance.randint(*PARENTS))
    children = _rows(database, child, chance, chance.randint(*CHILDREN))
    keys = [f"{parent}_id", f"{child}_id"]
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"CREATE TABLE {parent} ({_declared(database, parent)})")
        connection.execute(
            f"CREATE TABLE {child} ({_declared(database, child)}, {keys[0]} INTEGER, "
            f"FOREIGN KEY ({keys[0]}) REFERENCES {parent} ({keys[0]}))"
        )
        for number, row in enumerate(parents, 1):
            _insert(connection, parent, (number, *row))
        for number, row in enumerate(children, 1):
            # Some parents have no child.
            tied = None if chance.random() < ABSENT else chance.randint(1, len(parents) - 2)
            _insert(connection, child, (number, *row, tied))
        connection.commit()


def _column(table: str, specification: str) -> Column:
    if "=" in specification:
        name, options = specification.split("=")
        return Column(table, name, tuple(options.split("|")))
    name, bounds = specification.split(":")
    least, most = bounds.split("-")
    return Column(table, name, (), int(least), int(most))


def _declared(database: Database, table: str) -> str:
    columns = [f"{table}_id INTEGER PRIMARY KEY", "name TEXT"]
    for column in database.columns:
        if column.table == table:
            columns.append(f"{column.name} {'TEXT' if column.options else 'INTEGER'}")
    return ", ".join(columns)


def _rows(database: Database, table: str, chance: random.Random, count: int) -> list[list[Any]]:
    rows: list[list[Any]] = []
    own = [column for column in database.columns if column.table == table]
    for _ in range(count):
        if rows and chance.random() < TWICE:
            rows.append(list(chance.choice(rows)))
            continue
        name = "".join(chance.choices(SYLLABLES, k=3))
        rows.append([name, *(_cell(column, chance) for column in own)])
    return rows


def _cell(column: Column, chance: random.Random) -> Any:
    if chance.random() < ABSENT:
        return None
    if column.options:
        return chance.choice(column.options)
    # A coarse grid makes equal numbers, so that conditions keep several rows.
    step = max(1, (column.most - column.least) // 20)
    return column.least + step * chance.randint(0, (column.most - column.least) // step)


def _insert(connection: sqlite3.Connection, table: str, row: tuple[Any, ...]) -> None:
    connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
