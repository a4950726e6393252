"""Runs beside each other: the last evaluation of each, as a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxmethods.training.run_folder import RunFolder, RunFolderError

PREFIX = "evaluate/"


def compare(folders: Sequence[RunFolder]) -> str:
    """A row for each run: mean over seeds, with its standard error where there are several.

    The standard error is the sample standard deviation over the square root of the number of
    seeds. Of a run with several stages the last one that was evaluated counts.

    Raises:
        RunFolderError: a folder is not a run's, or nothing in it was evaluated yet.
    """
    rows = [_last_evaluation(folder) for folder in folders]
    metrics = list(dict.fromkeys(name for row in rows for name in row))
    lines = [["run", "seeds", *metrics], ["---"] * (len(metrics) + 2)]
    for folder, row in zip(folders, rows, strict=True):
        seeds = max(len(values) for values in row.values())
        cells = [_cell(row[name]) if name in row else "" for name in metrics]
        lines.append([folder.path.name, str(seeds), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _last_evaluation(folder: RunFolder) -> dict[str, np.ndarray]:
    """Metric name -> [seeds]."""
    folder.read_config()
    for row in reversed(folder.read_metrics()):
        metrics = {
            name.removeprefix(PREFIX): np.atleast_1d(np.asarray(value, float))
            for name, value in row.items()
            if name.startswith(PREFIX)
        }
        if metrics:
            return metrics
    raise RunFolderError(f"{folder.path}: nothing was evaluated yet")


def _cell(values: np.ndarray) -> str:
    if len(values) == 1:
        return f"{values[0]:.3g}"
    error = values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():.3g} ± {error:.2g}"
