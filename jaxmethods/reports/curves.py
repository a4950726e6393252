"""Learning curves of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from jaxmethods.numerics.statistics import standard_error
from jaxmethods.plotting import INK, new_figure, open_frame, write_png

COLUMNS = 3
HIDDEN = ("stage", "step", "seconds")


def metric_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the metrics in the rows: evaluation first, then training, in order of appearance."""
    names = dict.fromkeys(name for row in rows for name in row if name not in HIDDEN)
    return sorted(names, key=lambda name: not name.startswith(("evaluate/", "curve/")))


def series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [P] and values [P, S] of one metric over S seeds."""
    points = [(row["step"], np.atleast_1d(row[name])) for row in rows if name in row]
    return np.array([p[0] for p in points]), np.array([p[1] for p in points], float)


def learning_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws one panel a metric; over several seeds the mean and a band of one standard error."""
    names = metric_names(rows)
    lines = -(-len(names) // COLUMNS)
    figure = new_figure(4.2 * COLUMNS, 2.6 * lines)
    panels = figure.subplots(lines, COLUMNS, squeeze=False).ravel()
    for panel, name in zip(panels, names, strict=False):
        _curve(panel, *series(rows, name), name)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    write_png(figure, path)


def _curve(panel: Axes, steps: np.ndarray, values: np.ndarray, name: str) -> None:
    mean = values.mean(1)
    panel.plot(steps, mean, color=INK, linewidth=1.6, marker="." if len(steps) < 40 else None)
    if values.shape[1] > 1:
        error = standard_error(values, 1)
        panel.fill_between(steps, mean - error, mean + error, color=INK, alpha=0.2, linewidth=0)
    panel.set_title(name.replace("_", " "), fontsize=10, loc="left")
    panel.set_xlabel("step", fontsize=8)
    panel.tick_params(labelsize=8)
    panel.grid(alpha=0.25)
    open_frame(panel)
