"""Text-to-SQL: questions on SQLite databases, prompts, and a judge that queries can't hurt.

    from jaxmethods import sql
    examples = sql.read_spider("spider", "dev")
    with sql.Executor() as executor:
        judge = sql.Judge(executor)
        report = judge.report(examples, predictions)

`readers` reads the layouts of Spider and BIRD, `schema` and `serialization` describe a database to
a language model, `execution` runs queries in worker processes (`worker`), `parsing` and `matching`
are Spider's exact set match, `results` says when two results are equal, `judge` puts verdicts
together, `fuzz` makes further databases of one, `vote` picks among several predictions.
"""

from __future__ import annotations

from jaxmethods.sql.execution import Executor as Executor
from jaxmethods.sql.execution import Limits as Limits
from jaxmethods.sql.execution import Result as Result
from jaxmethods.sql.execution import SqlError as SqlError
from jaxmethods.sql.fuzz import fuzz_databases
from jaxmethods.sql.judge import Judge as Judge
from jaxmethods.sql.judge import Report as Report
from jaxmethods.sql.judge import Verdict as Verdict
from jaxmethods.sql.matching import exact_match, hardness
from jaxmethods.sql.readers import Example as Example
from jaxmethods.sql.readers import read_bird, read_predictions, read_spider, read_tables
from jaxmethods.sql.results import bird_equal, results_equal
from jaxmethods.sql.schema import Schema as Schema
from jaxmethods.sql.schema import read_schema
from jaxmethods.sql.serialization import (
    build_prompt,
    compact_schema,
    match_contents,
    schema_sequence,
)
from jaxmethods.sql.vote import first_executable, vote

__all__ = [
    "bird_equal",
    "build_prompt",
    "compact_schema",
    "exact_match",
    "first_executable",
    "fuzz_databases",
    "hardness",
    "match_contents",
    "read_bird",
    "read_predictions",
    "read_schema",
    "read_spider",
    "read_tables",
    "results_equal",
    "schema_sequence",
    "vote",
]
