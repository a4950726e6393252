"""Learning curves of a run."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxmethods.files import write_atomically

INK = "#1f3b57"
COLUMNS = 3
HIDDEN = ("stage", "step", "seconds")


def metric_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the metrics in the rows: evaluation first, then training, in order of appearance."""
    names = dict.fromkeys(name for row in rows for name in row if name not in HIDDEN)
    return sorted(names, key=lambda name: not name.startswith("evaluate/"))


def series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [P] and values [P, S] of one metric over S seeds."""
    points = [(row["step"], np.atleast_1d(row[name])) for row in rows if name in row]
    return np.array([p[0] for p in points]), np.array([p[1] for p in points], float)


def learning_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws one panel a metric; over several seeds the mean and a band of one standard error."""
    names = metric_names(rows)
    lines = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(4.2 * COLUMNS, 2.6 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, COLUMNS, squeeze=False).ravel()
    for panel, name in zip(panels, names, strict=False):
        _curve(panel, *series(rows, name), name)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    write_atomically(path, content.getvalue())  # others may read the figure meanwhile


def _curve(panel: Axes, steps: np.ndarray, values: np.ndarray, name: str) -> None:
    mean = values.mean(1)
    panel.plot(steps, mean, color=INK, linewidth=1.6, marker="." if len(steps) < 40 else None)
    if values.shape[1] > 1:
        error = values.std(1, ddof=1) / np.sqrt(values.shape[1])
        panel.fill_between(steps, mean - error, mean + error, color=INK, alpha=0.2, linewidth=0)
    panel.set_title(name.replace("_", " "), fontsize=10, loc="left")
    panel.set_xlabel("step", fontsize=8)
    panel.tick_params(labelsize=8)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
