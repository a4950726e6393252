"""The stage that computes a report's rows one by one, and the files that are made of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmethods.files import write_atomically
from jaxmethods.interpret.measures import LEVELS, MEASURES
from jaxmethods.interpret.problem import Problem
from jaxmethods.interpret.recipes.pictures import PICTURES, pictures_of
from jaxmethods.interpret.report import Row, measure_row, measures_of, to_json, to_markdown
from jaxmethods.numerics.keys import named
from jaxmethods.stages import Arrays, Compute, Part, Results

STAGE = "rows"
SEED = "seed"


class Subject(NamedTuple):
    """What is reported on."""

    problem: Problem
    """The model and its training data."""
    held_out: Problem
    """The same model and other data."""


Subjects = Callable[[Results], Sequence[Subject]]
"""Results of earlier stages -> the subject of every seed."""


def rows_stage(subjects: Subjects, seed: int, level: str) -> Compute:
    """A stage whose parts are rows and pictures, so that a stopped report goes on with the next.

    Args:
        subjects: of every seed; called at every start.
        seed: of probes and draws.
        level: "quick", "standard" or "full".

    Returns:
        The stage; its result is, for every seed, a mapping of arrays.
    """

    def parts(results: Results, place: Any) -> list[Part]:
        del place
        made = []
        for number, subject in enumerate(subjects(results)):
            key = jax.random.key(seed + number)
            todo = {
                name: partial(_row, name, subject, key, level)
                for name in measures_of(subject.problem)
            }
            for name in pictures_of(subject.problem):
                todo[name] = partial(_picture, name, subject, named(key, name), level)
            made += [
                Part(f"{number}-{name}", partial(_marked, number, compute))
                for name, compute in todo.items()
            ]
        return made

    return Compute(STAGE, parts, _collect, metrics=_metrics)


def _marked(number: int, compute: Callable[[], Arrays]) -> Arrays:
    """A part's arrays and whose they are."""
    return {SEED: np.asarray(number), **compute()}


def _row(name: str, subject: Subject, key: jax.Array, level: str) -> Arrays:
    row = measure_row(name, subject.problem, subject.held_out, key, level)
    return {f"{name}.value": np.asarray(row.value), f"{name}.error": np.asarray(row.error)}


def _picture(name: str, subject: Subject, key: jax.Array, level: str) -> Arrays:
    found = PICTURES[name].compute(subject.problem, subject.held_out, key, LEVELS[level])
    return {f"{name}/{part}": np.asarray(value) for part, value in found.items()}


def _collect(parts: Sequence[Arrays]) -> tuple[dict[str, Any], ...]:
    """Arrays of every seed."""
    seeds: dict[int, dict[str, Any]] = {}
    for part in parts:
        own = dict(part)
        seeds.setdefault(int(own.pop(SEED)), {}).update(own)
    return tuple(seeds[number] for number in sorted(seeds))


def _metrics(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every value that is finite for all seeds, [seeds]: the record has no place for others."""
    names = [name for name in MEASURES if f"{name}.value" in seeds[0]]
    values = {name: np.array([float(own[f"{name}.value"]) for own in seeds]) for name in names}
    return {name: own for name, own in values.items() if np.all(np.isfinite(own))}


def rows_of(arrays: Mapping[str, Any]) -> dict[str, Row]:
    """Rows from what the stage kept of one seed."""
    return {
        name: Row(
            own.title,
            own.section,
            float(arrays[f"{name}.value"]),
            float(arrays[f"{name}.error"]),
            own.caveat,
        )
        for name, own in MEASURES.items()
        if f"{name}.value" in arrays
    }


def write_report(results: Results, folder: Path, title: str = "") -> None:
    """Writes `table.md` and the pictures of the first seed, and `diagnostics.json` of all.

    Args:
        results: with that of the stage.
        folder: where the files go.
        title: what is reported on; a line above the table.
    """
    seeds = results[STAGE]
    reports = [rows_of(arrays) for arrays in seeds]
    above = f"{title}\n\n" if title else ""
    write_atomically(folder / "table.md", f"{above}{to_markdown(reports[0])}\n".encode())
    text = json.dumps([to_json(rows) for rows in reports], indent=1, allow_nan=False)
    write_atomically(folder / "diagnostics.json", text.encode())
    (folder / "figures").mkdir(exist_ok=True)
    for name, picture in PICTURES.items():
        own = {key.split("/")[1]: seeds[0][key] for key in seeds[0] if key.startswith(f"{name}/")}
        if own:
            picture.draw(folder / "figures" / f"{picture.file}.png", own)
