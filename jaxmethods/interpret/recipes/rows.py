"""The stage that computes a report's rows one by one, and the files that are made of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.files import write_atomically
from jaxmethods.interpret.curvature import operators, slq
from jaxmethods.interpret.problem import Problem
from jaxmethods.interpret.report import (
    LEVELS,
    MEASURES,
    Row,
    measure_row,
    measures_of,
    to_json,
    to_markdown,
)
from jaxmethods.numerics.keys import named
from jaxmethods.plotting import INK, new_figure, open_frame, write_png
from jaxmethods.stages import Arrays, Compute, Part, Results

Problems = Callable[[Results], Sequence[tuple[Problem, Problem]]]
"""Results of earlier stages -> (problem, held-out problem) of every seed."""
STAGE = "rows"


def rows_stage(problems: Problems, seed: int, level: str) -> Compute:
    """A stage whose parts are rows, so that a stopped report goes on with the next one.

    Args:
        problems: of every seed; called at every start.
        seed: of probes and draws.
        level: "quick", "standard" or "full".

    Returns:
        The stage; its result is, for every seed, a mapping of arrays.
    """

    def parts(results: Results, place: Any) -> list[Part]:
        del place
        made = []
        for number, (problem, held_out) in enumerate(problems(results)):
            key = jax.random.key(seed + number)
            for name in measures_of(problem):
                compute = partial(_row, name, problem, held_out, key, level)
                made.append(Part(f"{number}-{name}", compute))
            made.append(Part(f"{number}-spectrum", partial(_spectrum, problem, key, level)))
        return made

    return Compute(STAGE, parts, _collect, metrics=_metrics)


def _row(name: str, problem: Problem, held_out: Problem, key: jax.Array, level: str) -> Arrays:
    row = measure_row(name, problem, held_out, key, level)
    return {f"{name}.value": np.asarray(row.value), f"{name}.error": np.asarray(row.error)}


def _spectrum(problem: Problem, key: jax.Array, level: str) -> Arrays:
    effort = LEVELS[level]
    operator = operators.hessian(problem)
    found = slq.spectrum(operator, named(key, "spectrum"), effort.steps, effort.spectra)
    return {"nodes": np.asarray(found.nodes), "weights": np.asarray(found.weights)}


def _collect(parts: Sequence[Arrays]) -> tuple[dict[str, Any], ...]:
    """Arrays of every seed; a seed's parts end with its spectrum."""
    seeds: list[dict[str, Any]] = [{}]
    for part in parts:
        if "nodes" in seeds[-1]:
            seeds.append({})
        seeds[-1].update(part)
    return tuple(seeds)


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


def write_report(results: Results, folder: Path) -> None:
    """Writes `table.md` and the spectrum of the first seed, and `diagnostics.json` of all.

    Args:
        results: with that of the stage.
        folder: where the files go.
    """
    seeds = results[STAGE]
    reports = [rows_of(arrays) for arrays in seeds]
    write_atomically(folder / "table.md", (to_markdown(reports[0]) + "\n").encode())
    text = json.dumps([to_json(rows) for rows in reports], indent=1, allow_nan=False)
    write_atomically(folder / "diagnostics.json", text.encode())
    (folder / "figures").mkdir(exist_ok=True)
    _draw_spectrum(folder / "figures" / "spectrum_of_the_hessian.png", seeds[0])


def _draw_spectrum(path: Path, arrays: Mapping[str, Any]) -> None:
    nodes, weights = np.asarray(arrays["nodes"]), np.asarray(arrays["weights"])
    own = slq.Spectrum(jnp.asarray(nodes), jnp.asarray(weights), jnp.asarray(1.0))
    low, high = nodes[weights > 0].min(), nodes[weights > 0].max()
    room = 0.05 * max(high - low, 1e-12)
    grid = np.linspace(low - room, high + room, 800, dtype=nodes.dtype)
    found = jax.jit(slq.density)(own, grid, 1e-4)
    figure = new_figure(6, 3.2)
    panel = figure.subplots()
    panel.semilogy(grid, np.maximum(found.value, 1e-8), color=INK)
    panel.set_ylim(1e-6, None)
    panel.set_xlabel("eigenvalue of the Hessian")
    panel.set_ylabel("density")
    open_frame(panel)
    write_png(figure, path)
