"""What a comparison leaves behind: `table.json`, `table.md` and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmethods.files import write_atomically
from jaxmethods.merging.evaluate import METHODS, ROWS, Results
from jaxmethods.merging.recipes import figures
from jaxmethods.numerics.statistics import markdown_table, summarize


def write(states: Results, tasks: Mapping[str, int], seeds: Sequence[int], folder: Path) -> None:
    """Writes table and figures into a run folder.

    Args:
        states: with a leading seed axis.
        tasks: name -> test images.
        seeds: their numbers.
        folder: of the run.
    """
    content = as_dict(states, tasks, seeds)
    write_atomically(folder / "table.json", json.dumps(content, indent=1))
    write_atomically(folder / "table.md", markdown(content))
    drawn = folder / "figures"
    figures.draw(content, ROWS, drawn)


def as_dict(states: Results, tasks: Mapping[str, int], seeds: Sequence[int]) -> dict[str, Any]:
    """Everything in `table.json`; every list has a leading seed axis."""

    def by_method(values: Any) -> dict[str, Any]:
        return {
            name: np.asarray(values)[:, place].astype(float).round(6).tolist()
            for place, name in enumerate(METHODS)
        }

    return {
        "tasks": list(tasks),
        "test_images": list(tasks.values()),
        "seeds": list(seeds),
        "accuracy": by_method(states.accuracy),
        "distance": by_method(states.distance),
        "routing": {
            name: np.asarray(value).astype(float).round(6).tolist()
            for name, value in states.routing.items()
        },
    }


def markdown(content: Mapping[str, Any]) -> str:
    """Methods x tasks in per cent, the mean over tasks last.

    Args:
        content: that of `as_dict`.

    Returns:
        A table of means ± standard errors over seeds, behind them in brackets the standard error
        over the test images of one model, sqrt(p (1 - p) / n).
    """
    tasks, images = content["tasks"], np.asarray(content["test_images"])
    rows = []
    for name, title in ROWS.items():
        values = np.asarray(content["accuracy"][name])  # [S, T]
        variances = np.mean(values * (1 - values), axis=0) / images  # [T]
        errors = np.sqrt([*variances, variances.sum() / len(images) ** 2])
        columns = np.concatenate([values, values.mean(1, keepdims=True)], 1).T
        cells = zip(100 * columns, 100 * errors, strict=True)
        rows.append([title, *(f"{summarize(own):.1f} ({error:.1f})" for own, error in cells)])
    table = markdown_table(["method", *tasks, "mean"], rows)
    return f"{table}\n\nIn brackets: the standard error over a task's test images.\n"
