"""Students of a saved set at work: as its card says, of other architectures, by other optimizers.

One stage with a part for every row. All students of a table are trained in one program, when the
first of its rows is missing; rows that are there already don't play again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import ValidationError

from jaxmethods.errors import DataError
from jaxmethods.files import write_atomically
from jaxmethods.numerics.keys import named
from jaxmethods.numerics.statistics import markdown_table, summarize
from jaxmethods.obd.config import OBDConfig, StudentConfig, Table
from jaxmethods.obd.config import TablesRun as Run
from jaxmethods.obd.evaluate import (
    Entrants,
    check_environment,
    check_spaces,
    player,
    trained_students,
)
from jaxmethods.obd.recipes.distilled_files import Distilled, load
from jaxmethods.obd.students import OPTIMIZERS
from jaxmethods.obd.tables import TABLES
from jaxmethods.obd.zoo import ARCHITECTURES
from jaxmethods.offline_rl.scores import (
    REFERENCE,
    reference_returns,
    score_name,
)
from jaxmethods.stages import Arrays, Compute, Part, Place, Recipe, Results

ROWS: dict[Table, dict[str, str]] = {
    "own": {"students": "as distilled"},
    "architectures": {
        name: f"{one.n_layers} linear layers{', residual' if one.residual else ''}"
        for name, one in ARCHITECTURES.items()
    },
    "optimizers": {name: f"optimizer {name}" for name in OPTIMIZERS},
}
"""Table -> row's name -> its title."""


class Row(NamedTuple):
    """One kind of student."""

    table: Table
    name: str

    @property
    def suffix(self) -> str:
        """What the names of its metrics end with."""
        return "" if self.table == "own" else f"_{self.table}_{self.name}"


def recipe(run: Run) -> Recipe:
    """One stage: all rows of all tables.

    Raises:
        DataError: the set cannot be read, or isn't that of its card.
        ValueError: an unknown environment, or one in which the set's students cannot act.
        MissingExtraError: the environment's simulator is not installed.
    """
    check_environment(run.evaluation)
    environment = run.evaluation.environment
    found = load(run.path)
    check_spaces(environment, found.syn.states.shape[1], found.syn.actions.shape[1])
    rows = [Row(table, name) for table in run.tables for name in ROWS[table]]
    students = Students(run, found, distillation_of(found, run.path))

    def parts(results: Results, place: Place) -> list[Part]:
        del results, place
        of_set = str(found.card["sha256"])[:16]
        return [
            Part(f"{row.table}-{row.name}-{of_set}", partial(students.play, row)) for row in rows
        ]

    def finish(arrays: Sequence[Arrays]) -> dict[Row, np.ndarray]:
        return {row: part["scores"] for row, part in zip(rows, arrays, strict=True)}

    def report(results: Results, folder: Path) -> None:
        ordered = {row: results["tables"][row] for row in rows}
        text = markdown(ordered, score_name(environment))
        write_atomically(folder / "table.md", text)

    stage = Compute("tables", parts, finish, partial(metrics, environment))
    headline = ("tables/score",) if "own" in run.tables else ()
    return Recipe([stage], report, reads=("tables",), headline=headline)


def distillation_of(found: Distilled, path: Path) -> OBDConfig:
    """How a set was made, from its card. Raises `DataError` where the card doesn't say."""
    try:
        return OBDConfig.model_validate(found.card.get("distillation"))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, ("distillation", *problem["loc"])))
        raise DataError(
            f"distilled set {path}: {where} of its card cannot be used ({problem['msg']})"
        ) from error


class Students:
    """Students of a set, trained when a row first needs them."""

    def __init__(self, run: Run, found: Distilled, own: OBDConfig):
        self.run = run
        self.found = found
        self.own = own
        self.trained = cache(self._trained)

    def play(self, row: Row) -> Arrays:
        """`scores` [K, E]."""
        params, student = self.trained(row.table)[row.name]
        play = player(self.run.evaluation, self.own.model_copy(update={"student": student}))
        assert play is not None
        measured = play.measure(params, self.found.norm, self._keys(row.table)[1])
        if row.table != "own" and isinstance(measured, Entrants):
            measured = measured._replace(seed=jnp.int32(0))  # the episodes of published tables
        return {"scores": play.scores(jax.tree.map(lambda leaf: leaf[None], measured))[0]}

    def _trained(self, table: Table) -> dict[str, tuple[Any, StudentConfig]]:
        """Row's name -> parameters [K, ...] and architecture."""
        count, (key, _) = self.run.evaluation.students, self._keys(table)
        if table == "own":
            params = trained_students(self.own, count, key, self.found.syn)
            return {"students": (params, self.own.student)}
        rows = TABLES[table](key, self.found.syn, count)
        return {name: (params, student) for name, params, student in rows}

    def _keys(self, table: Table) -> tuple[jax.Array, jax.Array]:
        """The keys of training and of playing: not those that the set was distilled with."""
        root = jax.random.key(self.run.seed)
        if table == "own":
            train, play = jax.random.split(named(root, "students"))
            return train, play
        return named(root, "table"), named(root, "play")


def metrics(environment: str, scores: Mapping[Row, np.ndarray]) -> dict[str, float]:
    """Mean score and standard error over students of every row; of `own` the return too.

    Args:
        scores: [K, E] of each row.
    """
    found = {}
    for row, values in scores.items():
        summary = summarize(values)
        found[f"score{row.suffix}"] = summary.mean
        if summary.error is not None:
            found[f"error{row.suffix}"] = summary.error
        if row.table == "own" and environment in REFERENCE:
            low, high = reference_returns(environment)
            found["return"] = low + summary.mean * (high - low) / 100
    return found


def markdown(scores: Mapping[Row, np.ndarray], measure: str) -> str:
    """A Markdown table: mean ± standard error over students.

    Args:
        scores: [K, E] of each row.
        measure: what the scores are.
    """
    rows = [
        [ROWS[row.table][row.name], f"{summarize(values):.1f}"] for row, values in scores.items()
    ]
    return markdown_table(["students", measure], rows) + "\n"
