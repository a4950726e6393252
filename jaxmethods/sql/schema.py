"""What is in a database: tables, columns, keys and a few values, read by a worker process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxmethods.sql.execution import Executor
from jaxmethods.sql.matching import equivalent_columns

SYSTEM_TABLE = "sqlite_sequence"


class TableColumn(NamedTuple):
    """A column of a table."""

    name: str
    type: str
    primary_key: bool
    values: tuple[Any, ...]
    """The first distinct ones that aren't NULL."""


class Table(NamedTuple):
    """A table and its columns."""

    name: str
    columns: tuple[TableColumn, ...]


class ForeignKey(NamedTuple):
    """A column that holds the values of another."""

    table: str
    column: str
    other_table: str
    other_column: str


class Schema(NamedTuple):
    """A database; names are lower-case."""

    tables: tuple[Table, ...]
    foreign_keys: tuple[ForeignKey, ...]

    @property
    def names(self) -> dict[str, list[str]]:
        """Table -> its columns."""
        return {table.name: [column.name for column in table.columns] for table in self.tables}

    @property
    def tied_columns(self) -> dict[str, str]:
        """ "table.column" -> the first of the columns that foreign keys tie it to."""
        columns = [f"{table}.{name}" for table, names in self.names.items() for name in names]
        place = {column: number for number, column in enumerate(columns)}
        pairs = [
            (place[f"{key.table}.{key.column}"], place[f"{key.other_table}.{key.other_column}"])
            for key in self.foreign_keys
            if f"{key.table}.{key.column}" in place
            and f"{key.other_table}.{key.other_column}" in place
        ]
        return equivalent_columns(columns, pairs)


def read_schema(executor: Executor, database: str | Path, values: int = 2) -> Schema:
    """Reads tables, columns, keys and values of a database.

    Args:
        executor: its workers read the file.
        database: path of a SQLite file.
        values: distinct values of each column, at the most.

    Returns:
        Its schema, in the order of the file; SQLite's own tables are among it.

    Raises:
        SqlError: the database can't be read.
    """
    tables, keys = [], []
    for name, columns, foreign in executor.describe(database, values):
        table = name.lower()
        tables.append(Table(table, tuple(_column(*column) for column in columns)))
        for one in foreign:
            if None not in one:
                keys.append(ForeignKey(table, *(part.lower() for part in one)))
    return Schema(tuple(tables), tuple(keys))


def tied_by_record(record: Mapping[str, Any]) -> dict[str, str]:
    """Columns tied by the foreign keys of a record of Spider's `tables.json`."""
    tables = [table.lower() for table in record["table_names_original"]]
    columns = [
        "*" if table < 0 else f"{tables[table]}.{name.lower()}"
        for table, name in record["column_names_original"]
    ]
    return equivalent_columns(columns, [(one, other) for one, other in record["foreign_keys"]])


def _column(name: str, kind: str, key: int, values: list[Any]) -> TableColumn:
    found = tuple(bytes.fromhex(one["b"]) if isinstance(one, dict) else one for one in values)
    return TableColumn(name.lower(), (kind or "").lower(), key != 0, found)
