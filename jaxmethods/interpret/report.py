"""A table of diagnostics of a model: each row has its error and says what it does not prove.

    rows = report(problem, held_out, key, level="quick")
    print(to_markdown(rows))

`measures.MEASURES` is the table's declaration. Each measure is one compiled program of the problem,
so that a report of other parameters of the same shapes compiles nothing, and a run can keep
finished rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmethods.interpret.measures import LEVELS, MEASURES, Measure, kinds
from jaxmethods.interpret.problem import Problem, check_independent
from jaxmethods.numerics.keys import named
from jaxmethods.numerics.statistics import markdown_table


class Row(NamedTuple):
    """A measure's value."""

    title: str
    section: str
    value: float
    error: float
    """Standard error or bound; 0 where the value is exact on its data, NaN where unknown."""
    caveat: str


def measures_of(problem: Problem) -> dict[str, Measure]:
    """The rows that a problem has.

    Args:
        problem: a classifier has more of them, see `measures.Kind`.

    Returns:
        Name -> measure.
    """
    found = kinds(problem)
    return {name: own for name, own in MEASURES.items() if own.needs in found}


def measure_row(
    name: str, problem: Problem, held_out: Problem, key: jax.Array, level: str = "standard"
) -> Row:
    """One row, computed.

    Args:
        name: of `MEASURES`.
        problem: the model and its training data.
        held_out: the same model and other data.
        key: of the whole report; each row has its own by its name.
        level: "quick", "standard" or "full".

    Returns:
        The row, of host numbers.

    Raises:
        ValueError: an unknown name or level.
    """
    if name not in MEASURES:
        raise ValueError(f"name: expected one of {', '.join(MEASURES)}, got {name!r}")
    if level not in LEVELS:
        raise ValueError(f"level: expected one of {', '.join(LEVELS)}, got {level!r}")
    measure = MEASURES[name]
    found = measure.compute(problem, held_out, named(key, name), LEVELS[level])
    return Row(
        measure.title, measure.section, float(found.value), float(found.error), measure.caveat
    )


def report(
    problem: Problem, held_out: Problem, key: jax.Array, level: str = "standard"
) -> dict[str, Row]:
    """All rows of a model.

    Args:
        problem: the model and its training data.
        held_out: the same model and other data.
        key: of every probe and draw.
        level: "quick", "standard" or "full".

    Returns:
        Name -> row, in the order of `MEASURES`.

    Raises:
        ValueError: a model whose examples see each other: what is measured of single examples,
            or of batches, would be of no model at all.
    """
    check_independent(problem)
    names = measures_of(problem)
    return {name: measure_row(name, problem, held_out, key, level) for name in names}


def to_markdown(rows: Mapping[str, Row]) -> str:
    """A table of rows: measure, value and error, section, what it does not prove."""
    lines = [(row.title, _number(row), row.section, row.caveat) for row in rows.values()]
    return markdown_table(["measure", "value", "section", "does not prove"], lines)


def _number(row: Row) -> str:
    if np.isnan(row.value):
        return "none: too noisy to tell"
    return f"{row.value:.4g}" if row.error == 0 else f"{row.value:.4g} ± {row.error:.2g}"


def to_json(rows: Mapping[str, Row]) -> dict[str, Any]:
    """Rows as plain values; what is not finite is None."""

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not np.isfinite(value) else value

    return {
        name: {field: plain(value) for field, value in row._asdict().items()}
        for name, row in rows.items()
    }
