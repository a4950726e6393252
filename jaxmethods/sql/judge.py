"""Verdicts on predicted queries: execution, test suites, exact set match, BIRD's rule.

A gold query that fails is an error of the data and raises; a prediction that fails is wrong, with
the reason in its verdict. So two failures are never equal.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmethods.files import refusals
from jaxmethods.numerics.statistics import mean_and_error
from jaxmethods.sql.execution import Executor, Result, SqlError, Status
from jaxmethods.sql.matching import LEVELS, compared, hardness, match
from jaxmethods.sql.parsing import EMPTY, Names, Sql, Unparsable, parse
from jaxmethods.sql.readers import Example
from jaxmethods.sql.results import bird_equal, order_counts, results_equal
from jaxmethods.sql.schema import read_schema, tied_by_record
from jaxmethods.sql.tokens import join_operators, remove_distinct, replace_current_year


class Verdict(NamedTuple):
    """What is right about one prediction."""

    execution: bool
    """Its result is the gold query's, by Spider's rule."""
    bird: bool
    """Its result is the gold query's, by BIRD's rule."""
    exact: bool
    """It is the gold query, clause by clause; False as well where that isn't understood."""
    parsed: bool
    """Whether the parser of the exact set match understands the prediction."""
    hardness: str
    """The gold query's: easy, medium, hard, extra, or "" where it isn't understood."""
    status: Status
    """How the run of the prediction ended."""
    message: str
    empty: bool
    """The gold result has no rows, so that any query that finds nothing is right."""


class Report(NamedTuple):
    """Scores of a list of predictions, and what they were measured with."""

    verdicts: tuple[Verdict, ...]
    numbers: Mapping[str, float]
    """n; execution, bird, exact, error_rate, each with `_error` (standard error); execution_EASY
    and count_EASY for each hardness; empty_gold."""
    statuses: Mapping[str, int]
    sqlite_version: str
    databases: Mapping[str, str]
    """Path -> the first 16 digits of the file's SHA-256."""
    evaluator: str


class Judge:
    """Compares predictions with gold queries on their databases."""

    def __init__(
        self,
        executor: Executor,
        *,
        keep_distinct: bool = False,
        official_cli_compat: bool = False,
        tables: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Makes a judge.

        Args:
            executor: runs the queries.
            keep_distinct: compare results with DISTINCT, which Spider's evaluation drops.
            official_cli_compat: write "1" for "value" in predictions, as the command line of the
                official evaluator does: right queries on such columns become wrong.
            tables: records of `tables.json` (`read_tables`), whose foreign keys tie columns for
                the exact match; default: the databases' own.
        """
        executor.require_double_quotes()
        self.executor = executor
        self.keep_distinct = keep_distinct
        self.official_cli_compat = official_cli_compat
        self.tables = tables or {}
        self._schemas: dict[str, tuple[Names, Mapping[str, str]]] = {}
        self._golds: dict[tuple[str, str], tuple[Sql, str] | None] = {}

    def execution_match(
        self, databases: Sequence[str | Path], predicted: str, gold: str
    ) -> tuple[bool, Result]:
        """Whether results are equal on every database: one for EX, a folder of them for TS.

        Returns:
            verdict and the prediction's result on the last database that was looked at.

        Raises:
            SqlError: the gold query fails; there is no database.
        """
        if not databases:
            raise SqlError("databases: expected at least one, got none")
        result = Result("error")
        for database in databases:
            expected = self._gold(database, self._runnable(gold))
            result = self.executor.execute(database, self._runnable(self._given(predicted)))
            if not _equal(result, expected, gold):
                return False, result
        return True, result

    def bird_match(self, database: str | Path, predicted: str, gold: str) -> bool:
        """BIRD's execution accuracy. Raises `SqlError` where the gold query fails."""
        expected = self._gold(database, gold)
        result = self.executor.execute(database, self._given(predicted))
        return result.ok and bird_equal(result.rows, expected.rows)

    def verdict(self, example: Example, predicted: str) -> Verdict:
        """Everything about one prediction.

        Raises:
            SqlError: the gold query fails.
        """
        database, given, gold = example.database, self._given(predicted), example.query
        queries = self._runnable(given), self._runnable(gold)
        expected = self._gold(database, queries[1])
        result = self.executor.execute(database, queries[0])
        # BIRD's rule runs the texts as they are: most often these are the same.
        plain = result if queries[0] == given else self.executor.execute(database, given)
        plain_gold = expected if queries[1] == gold else self._gold(database, gold)
        exact, parsed, level = self._syntax(example, given)
        return Verdict(
            execution=_equal(result, expected, gold),
            bird=plain.ok and bird_equal(plain.rows, plain_gold.rows),
            exact=exact,
            parsed=parsed,
            hardness=level,
            status=result.status,
            message=result.message,
            empty=not expected.rows,
        )

    def report(self, examples: Sequence[Example], predictions: Sequence[str]) -> Report:
        """Verdicts and scores of all predictions, which are run side by side.

        Raises:
            SqlError: there are none, or not as many as examples; a gold query fails.
        """
        if not examples or len(examples) != len(predictions):
            raise SqlError(
                f"predictions: expected one for each of {len(examples)} examples (at least one), "
                f"got {len(predictions)}"
            )
        verdicts = self.executor.each(self.verdict, list(zip(examples, predictions, strict=True)))
        paths = sorted({str(example.database) for example in examples})
        rule = "DISTINCT kept" if self.keep_distinct else "DISTINCT dropped"
        compat = ", official_cli_compat" if self.official_cli_compat else ""
        return Report(
            verdicts=tuple(verdicts),
            numbers=_numbers(verdicts),
            statuses=Counter(verdict.status for verdict in verdicts),
            sqlite_version=self.executor.sqlite_version,
            databases={path: file_hash(path) for path in paths},
            evaluator=f"jaxmethods.sql, one database each, {rule}, no value plugging{compat}",
        )

    def _given(self, predicted: str) -> str:
        return predicted.replace("value", "1") if self.official_cli_compat else predicted

    def _runnable(self, query: str) -> str:
        query = join_operators(query)
        return replace_current_year(query if self.keep_distinct else remove_distinct(query))

    def _gold(self, database: str | Path, query: str) -> Result:
        result = self.executor.execute(database, query, cached=True)
        if not result.ok:
            raise SqlError(
                f"database {database}: gold query {query!r:.200}: {result.status} "
                f"({result.message})"
            )
        return result

    def _syntax(self, example: Example, predicted: str) -> tuple[bool, bool, str]:
        """(exact match, whether the prediction is understood, hardness)."""
        names, keys = self._schema(example)
        own = _parsed(predicted, names)
        place = str(example.database), example.query
        if place not in self._golds:  # a gold query is asked for once for each of many samples
            gold = _parsed(example.query, names)
            self._golds[place] = gold and (compared(gold, keys), hardness(gold))
        found = self._golds[place]
        if found is None:
            return False, own is not None, ""
        return match(compared(own or EMPTY, keys), found[0]), own is not None, found[1]

    def _schema(self, example: Example) -> tuple[Names, Mapping[str, str]]:
        path = str(example.database)
        if path not in self._schemas:
            schema = read_schema(self.executor, path)
            record = self.tables.get(example.database_id)
            keys = schema.tied_columns if record is None else tied_by_record(record)
            self._schemas[path] = schema.names, keys
        return self._schemas[path]


def databases_beside(database: str | Path) -> list[Path]:
    """All databases of a folder that holds a test suite, in the order of their names."""
    return sorted(Path(database).parent.glob("*.sqlite*"))


def file_hash(path: str | Path) -> str:
    """The first 16 digits of a file's SHA-256."""
    with refusals(path, "read"), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _equal(result: Result, expected: Result, gold: str) -> bool:
    """Whether a prediction's result is the gold query's, by Spider's rule."""
    ordered = order_counts(join_operators(gold))
    return result.ok and results_equal(result.rows, expected.rows, ordered)


def _parsed(query: str, names: Names) -> Sql | None:
    try:
        return parse(query, names)
    except Unparsable:
        return None


def _numbers(verdicts: Sequence[Verdict]) -> dict[str, float]:
    numbers: dict[str, float] = {"n": len(verdicts)}
    columns = {
        "execution": [verdict.execution for verdict in verdicts],
        "bird": [verdict.bird for verdict in verdicts],
        "exact": [verdict.exact for verdict in verdicts],
        "error_rate": [verdict.status != "ok" for verdict in verdicts],
    }
    for name, values in columns.items():
        mean, error = mean_and_error(np.asarray(values, float))
        numbers[name] = mean
        if error is not None:
            numbers[f"{name}_error"] = error
    for level in LEVELS:
        right = [verdict.execution for verdict in verdicts if verdict.hardness == level]
        numbers[f"count_{level}"] = len(right)
        if right:
            numbers[f"execution_{level}"] = float(np.mean(right))
    numbers["empty_gold"] = sum(verdict.empty for verdict in verdicts)
    return numbers
