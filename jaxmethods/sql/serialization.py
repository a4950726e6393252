"""A database and a question as the text that a language model continues with SQL.

The format is that of CodeS (Li et al., SIGMOD 2024, arXiv 2402.16347; https://github.com/
RUCKBReasoning/codes): schema, values that the question mentions, question, each on its own lines.
Which values are mentioned is found with the question alone, never with the gold query.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmethods.sql.execution import Executor
from jaxmethods.sql.schema import SYSTEM_TABLE, Schema, TableColumn

SPECIAL = re.compile(r"[()\- /]")
QUOTED = r"""'(?:[^']|'')*'|"[^"]*"|`[^`]*`|\[[^\]]*\]"""
LONGEST_VALUE = 25
MATCHES = 2
"""Values of one column that a prompt shows."""
LOOKED_AT = 2000
"""Distinct values of a column that are compared with a question."""

Comments = Mapping[tuple[str, str], str]
"""(table, column) -> what a person would call the column."""


def comments_of(record: Mapping[str, Any]) -> Comments:
    """Readable names of a record of Spider's `tables.json`, where they say more than the name."""
    tables = [table.lower() for table in record["table_names_original"]]
    found = {}
    for (table, name), (_, readable) in zip(
        record["column_names_original"], record["column_names"], strict=True
    ):
        name, readable = name.lower(), readable.lower()
        if table >= 0 and _letters(name) != _letters(readable):
            found[tables[table], name] = readable
    return found


def schema_sequence(schema: Schema, comments: Comments | None = None) -> str:
    """Writes a schema in CodeS' format: tables, columns with what is known of them, foreign keys.

    Args:
        schema: the database, as `read_schema` returns it.
        comments: readable names of columns (`comments_of`).

    Returns:
        A line for each table and foreign key; SQLite's own table is left out.
    """
    lines = ["database schema :"]
    for table in schema.tables:
        if table.name == SYSTEM_TABLE:
            continue
        name = quote(table.name)
        columns = [
            f"{name}.{quote(column.name)} ( "
            f"{_about(column, (comments or {}).get((table.name, column.name), ''))} )"
            for column in table.columns
        ]
        lines.append(f"table {name} , columns = [ {' , '.join(columns)} ]")
    keys = [[quote(part) for part in key] for key in schema.foreign_keys]
    lines.append("foreign keys :" if keys else "foreign keys : None")
    lines += ["{}.{} = {}.{}".format(*key) for key in keys]
    return "\n".join(lines).strip()


def compact_schema(schema: Schema) -> str:
    """Tables and their columns alone, on one line: a prompt for small models.

    team ( team_id , name , city ) | player ( player_id , name , team_id -> team )

    Args:
        schema: the database, as `read_schema` returns it.

    Returns:
        One line; a column with a foreign key shows the table that it points to.
    """
    tied = {(key.table, key.column): key.other_table for key in schema.foreign_keys}
    tables = []
    for table in schema.tables:
        if table.name == SYSTEM_TABLE:
            continue
        columns = [
            f"{quote(column.name)} -> {tied[table.name, column.name]}"
            if (table.name, column.name) in tied
            else quote(column.name)
            for column in table.columns
        ]
        tables.append(f"{quote(table.name)} ( {' , '.join(columns)} )")
    return " | ".join(tables)


def content_sequence(matched: Mapping[str, Sequence[str]]) -> str:
    """ "table.column" -> values, as text."""
    if not matched:
        return "matched contents : None"
    lines = ["matched contents :"]
    for place, values in matched.items():
        table, column = place.split(".")[:2]
        lines.append(f"{quote(table)}.{quote(column)} ( {' , '.join(values)} )")
    return "\n".join(lines).strip()


def build_prompt(
    schema: str, question: str, matched: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Builds the text that a model continues with SQL.

    Args:
        schema: text of the schema, from `schema_sequence`.
        question: with what BIRD calls evidence before it (`Example.text`).
        matched: "table.column" -> values, from `match_contents`; default: none.

    Returns:
        Schema, matched values and the question on one line, ended by a line break.
    """
    question = question.replace("\n", " ")
    return f"{schema}\n{content_sequence(matched or {})}\n{question}\n"


def match_contents(
    executor: Executor, database: str | Path, schema: Schema, question: str
) -> dict[str, list[str]]:
    """Values of text columns that a question mentions word by word, the longest first.

    Args:
        executor: reads up to `LOOKED_AT` distinct values of each text column, and keeps them.
        database: path of a SQLite file.
        schema: says which columns are there and, by their example values, which hold text.
        question: what is asked; case and punctuation don't count.

    Returns:
        "table.column" -> up to two values; columns without a match are left out.
    """
    asked = f" {_plain(question)} "
    found = {}
    for table in schema.tables:
        for column in table.columns:
            if table.name == SYSTEM_TABLE or not _holds_text(column):
                continue
            values = _values(executor, database, table.name, column.name)
            mentioned = [value for value in values if f" {_plain(value)} " in asked]
            best = sorted(mentioned, key=lambda value: (-len(value), value))[:MATCHES]
            if best:
                found[f"{table.name}.{column.name}"] = best
    return found


def quote_names(sql: str, schema: Schema) -> str:
    """A predicted query on one line, names of columns with special characters in backticks.

    Args:
        sql: what a model wrote.
        schema: of the database.

    Returns:
        The query; what stands in quotes or backticks stays what it is, and of names within names
        the longest is meant.
    """
    sql = sql.replace("\n", " ")
    names = {column.name for table in schema.tables for column in table.columns}
    special = sorted(filter(SPECIAL.search, names), key=len, reverse=True)
    if not special:
        return sql
    pattern = "|".join([QUOTED, *map(re.escape, special)])

    def in_backticks(match: re.Match[str]) -> str:
        return match[0] if match[0][0] in "'\"`[" else f"`{match[0]}`"

    return re.sub(pattern, in_backticks, sql, flags=re.IGNORECASE)


def quote(name: str) -> str:
    """The name, in backticks where it has special characters."""
    return f"`{name}`" if SPECIAL.search(name) else name


def _about(column: TableColumn, comment: str) -> str:
    written = [str(value).strip() for value in column.values]
    values = [value for value in written if 0 < len(value) <= LONGEST_VALUE]
    about = [
        column.type,
        "primary key" if column.primary_key else "",
        f"comment : {comment}" if comment else "",
        f"values : {' , '.join(values)}" if values else "",
    ]
    return " | ".join([about[0], *filter(None, about[1:])])


def _letters(name: str) -> str:
    return name.replace("_", "").replace(" ", "")


def _holds_text(column: TableColumn) -> bool:
    return any(isinstance(value, str) for value in column.values)


def _values(executor: Executor, database: str | Path, table: str, column: str) -> list[str]:
    quoted = ['"' + name.replace('"', '""') + '"' for name in (column, table)]
    query = f"SELECT DISTINCT {quoted[0]} FROM {quoted[1]} LIMIT {LOOKED_AT}"
    result = executor.execute(database, query, cached=True)
    return [value for (value,) in result.rows if isinstance(value, str) and _plain(value)]


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
