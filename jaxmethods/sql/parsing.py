"""Spider's SQL trees: the parser of its exact set match, with what it accepts and what it doesn't.

The rules, including their gaps (`count(1)` is no column, a text may go on behind the tree), are
those of https://github.com/taoyds/test-suite-sql-eval, `process_sql.py`, so that verdicts agree.

A tree is `Sql`; columns are (aggregate, "table.column", distinct), values of columns are
(operator, column, column or None), conditions are (not, operator, value, right, right 2) with
"and" or "or" between them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from jaxmethods.sql.tokens import words

CLAUSES = ("select", "from", "where", "group", "order", "limit", "intersect", "union", "except")
JOINS = ("join", "on", "as")
COMPARISONS = ("not", "between", "=", ">", "<", ">=", "<=", "!=", "in", "like", "is", "exists")
OPERATORS = ("none", "-", "+", "*", "/")
AGGREGATES = ("none", "max", "min", "count", "sum", "avg")
SETS = ("intersect", "union", "except")
ALL = "*"

Names: TypeAlias = Mapping[str, Sequence[str]]
"""Table -> its columns, lower-case."""
Column: TypeAlias = tuple[int, str, "bool | None"]
Value: TypeAlias = tuple[int, Column, "Column | None"]
Condition: TypeAlias = tuple[bool, int, Value, Any, Any]


class Sql(NamedTuple):
    """A query as Spider compares it."""

    select: tuple[bool | None, Sequence[tuple[int, Value]]] = (False, ())
    """Distinct, and (aggregate, value)s."""
    tables: Sequence[Any] = ()
    """Names of tables, and trees of queries in their place."""
    joins: Sequence[Any] = ()
    """Conditions of ON."""
    where: Sequence[Any] = ()
    group: Sequence[Column] = ()
    having: Sequence[Any] = ()
    order: tuple[str, Sequence[Value]] | None = None
    limit: bool = False
    intersect: Any = None
    union: Any = None
    except_: Any = None


EMPTY = Sql()
"""What a text counts as that isn't understood."""


class Unparsable(ValueError):
    """A text that Spider's parser doesn't understand."""


def parse(sql: str, names: Names) -> Sql:
    """The tree of a query.

    Raises:
        Unparsable: the parser doesn't understand it; this includes much that SQLite runs.
    """
    try:
        found = words(sql)
        return _Parser(found, _aliases(found, names), names).query(0)[1]
    except (ValueError, KeyError, IndexError, RecursionError) as error:
        raise Unparsable(f"{type(error).__name__}: {error}") from error


def _aliases(found: Sequence[str], names: Names) -> dict[str, str]:
    """Alias, or name, -> table."""
    aliases = {
        found[place + 1]: found[place - 1] for place, word in enumerate(found) if word == "as"
    }
    for table in names:
        if table in aliases:
            raise ValueError(f"alias {table} is the name of a table")
        aliases[table] = table
    return aliases


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(f"expected {what}")


class _Parser:
    """Recursive descent; each method takes a place and returns (next place, what it read)."""

    def __init__(self, found: Sequence[str], aliases: Mapping[str, str], names: Names) -> None:
        self.words, self.aliases, self.names = found, aliases, names

    def at(self, place: int, *expected: str) -> bool:
        """Whether one of these words stands here."""
        return place < len(self.words) and self.words[place] in expected

    def ends(self, place: int, *more: str) -> bool:
        """Whether a clause ends here."""
        return self.at(place, *CLAUSES, ")", ";", *more)

    def close(self, place: int, opened: bool) -> int:
        """Behind the bracket, where one was opened."""
        if opened:
            _expect(self.words[place] == ")", "a closing bracket")
        return place + opened

    def name(self, place: int, tables: Sequence[str]) -> tuple[int, str]:
        """A column as "table.column"."""
        word = self.words[place]
        if word == "*":
            return place + 1, ALL
        if "." in word:
            alias, column = word.split(".")
            table = self.aliases[alias]
            _expect(column in self.names[table], f"a column of {table}, got {column}")
            return place + 1, f"{table}.{column}"
        for table in tables:
            if word in self.names[self.aliases[table]]:
                return place + 1, f"{self.aliases[table]}.{word}"
        raise ValueError(f"no column {word}")

    def column(self, place: int, tables: Sequence[str]) -> tuple[int, Column]:
        opened = self.words[place] == "("
        place += opened
        if self.words[place] in AGGREGATES:
            aggregate = AGGREGATES.index(self.words[place])
            _expect(self.words[place + 1] == "(", "a bracket behind an aggregate")
            place += 2
            distinct = self.words[place] == "distinct"
            place, name = self.name(place + distinct, tables)
            # The bracket around an aggregate, if there is one, is left to whoever called.
            return self.close(place, True), (aggregate, name, distinct)
        distinct = self.words[place] == "distinct"
        place, name = self.name(place + distinct, tables)
        return self.close(place, opened), (0, name, distinct)

    def value(self, place: int, tables: Sequence[str]) -> tuple[int, Value]:
        opened = self.words[place] == "("
        place, first = self.column(place + opened, tables)
        operator, second = 0, None
        if self.at(place, *OPERATORS):
            operator = OPERATORS.index(self.words[place])
            place, second = self.column(place + 1, tables)
        return self.close(place, opened), (operator, first, second)

    def right(self, place: int, tables: Sequence[str]) -> tuple[int, Any]:
        """The right side of a comparison: a query, a literal, a number or a column."""
        start = place
        opened = self.words[place] == "("
        place += opened
        word = self.words[place]
        if word == "select":
            place, found = self.query(place)
        elif '"' in word:
            place, found = place + 1, word
        else:
            found: Any = None
            with contextlib.suppress(ValueError):
                found = float(word)
            if found is not None:
                place += 1
            else:
                end = place
                stops = (",", ")", "and", *CLAUSES, *JOINS)
                while end < len(self.words) and not self.at(end, *stops):
                    end += 1
                part = _Parser(self.words[start:end], self.aliases, self.names)
                found, place = part.column(0, tables)[1], end
        return self.close(place, opened), found

    def conditions(self, place: int, tables: Sequence[str]) -> tuple[int, list[Any]]:
        found: list[Any] = []
        while place < len(self.words):
            place, value = self.value(place, tables)
            negated = self.words[place] == "not"
            place += negated
            _expect(self.at(place, *COMPARISONS), "a comparison")
            comparison = COMPARISONS.index(self.words[place])
            place, first = self.right(place + 1, tables)
            second = None
            if COMPARISONS[comparison] == "between":
                _expect(self.words[place] == "and", "and")
                place, second = self.right(place + 1, tables)
            found.append((negated, comparison, value, first, second))
            if self.ends(place, *JOINS):
                break
            if self.at(place, "and", "or"):
                found.append(self.words[place])
                place += 1
        return place, found

    def select(self, place: int, tables: Sequence[str]) -> tuple[bool, list[tuple[int, Value]]]:
        _expect(self.words[place] == "select", "select")
        distinct = self.at(place + 1, "distinct")
        place += 1 + distinct
        values = []
        while place < len(self.words) and not self.at(place, *CLAUSES):
            aggregate = 0
            if self.words[place] in AGGREGATES:
                aggregate = AGGREGATES.index(self.words[place])
                place += 1
            place, value = self.value(place, tables)
            values.append((aggregate, value))
            place += self.at(place, ",")
        return distinct, values

    def tables(self, place: int) -> tuple[int, list[Any], list[Any], list[str]]:
        """Tables, conditions of ON and names in which columns without a table are looked up."""
        place = self.words.index("from", place) + 1
        tables: list[Any] = []
        conditions: list[Any] = []
        known: list[str] = []
        while place < len(self.words):
            opened = self.words[place] == "("
            place += opened
            if self.words[place] == "select":
                place, found = self.query(place)
                tables.append(found)
            else:
                place += self.at(place, "join")
                table = self.aliases[self.words[place]]
                _expect(table in self.names, f"a table, got {table}")
                place += 3 if self.at(place + 1, "as") else 1
                tables.append(table)
                known.append(table)
            if self.at(place, "on"):
                place, more = self.conditions(place + 1, known)
                conditions += ["and", *more] if conditions else more
            place = self.close(place, opened)
            if self.ends(place):
                break
        return place, tables, conditions, known

    def by(self, place: int, clause: str, read: Any, tables: Sequence[str]) -> Any:
        """What stands behind GROUP BY or ORDER BY, and the last direction."""
        found: list[Any] = []
        direction = "asc"
        if not self.at(place, clause):
            return place, found, direction
        _expect(self.words[place + 1] == "by", "by")
        place += 2
        while place < len(self.words) and not self.ends(place):
            place, one = read(place, tables)
            found.append(one)
            if clause == "order" and self.at(place, "asc", "desc"):
                direction = self.words[place]
                place += 1
            if not self.at(place, ","):
                break
            place += 1
        return place, found, direction

    def filtered(self, place: int, clause: str, tables: Sequence[str]) -> tuple[int, list[Any]]:
        """Conditions of WHERE or HAVING."""
        if not self.at(place, clause):
            return place, []
        return self.conditions(place + 1, tables)

    def query(self, place: int) -> tuple[int, Sql]:
        opened = self.words[place] == "("
        start = place + opened
        place, tables, joins, known = self.tables(place)
        select = self.select(start, known)
        place, where = self.filtered(place, "where", known)
        place, group, _ = self.by(place, "group", self.column, known)
        place, having = self.filtered(place, "having", known)
        ordered = self.at(place, "order")
        place, order, direction = self.by(place, "order", self.value, known)
        limit = self.at(place, "limit")
        if limit:
            self.words[place + 1]  # a number must stand there
            place += 2
        place = self.close(self.semicolons(place), opened)
        place = self.semicolons(place)
        sets: dict[str, Any] = {}
        if self.at(place, *SETS):
            name = self.words[place].replace("except", "except_")
            place, sets[name] = self.query(place + 1)
        return place, Sql(
            select=select,
            tables=tables,
            joins=joins,
            where=where,
            group=group,
            having=having,
            order=(direction, order) if ordered else None,
            limit=limit,
            **sets,
        )

    def semicolons(self, place: int) -> int:
        while self.at(place, ";"):
            place += 1
        return place
