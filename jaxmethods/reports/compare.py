"""Runs beside each other: the last evaluation of each, as a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxmethods.numerics.statistics import summarize
from jaxmethods.records.run_folder import RunFolder, RunFolderError
from jaxmethods.reports.result import (
    Judged,
    describe,
    last_judged,
    read_environment,
    read_headline,
)


def compare(folders: Sequence[RunFolder]) -> str:
    """A row for each run: mean over seeds, with its standard error where there are several.

    The standard error is the sample standard deviation over the square root of the number of
    seeds. Of a run with several stages the last one that was evaluated counts.

    Raises:
        RunFolderError: a folder is not a run's, or nothing in it was evaluated yet.
    """
    rows = [_last_evaluation(folder).metrics for folder in folders]
    metrics = list(dict.fromkeys(name for row in rows for name in row))
    lines = [["run", "seeds", *metrics], ["---"] * (len(metrics) + 2)]
    for folder, row in zip(folders, rows, strict=True):
        seeds = max(len(values) for values in row.values())
        cells = [str(summarize(row[name])) if name in row else "" for name in metrics]
        lines.append([folder.path.name, str(seeds), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def results(folders: Sequence[RunFolder]) -> dict[str, dict[str, Any]]:
    """Folder -> what its `result.json` says, or would say by now."""
    found = {}
    for folder in folders:
        judged, headline = last_judged(folder.read_metrics()), read_headline(folder)
        found[str(folder.path)] = describe(folder, headline, judged, read_environment(folder))
    return found


def _last_evaluation(folder: RunFolder) -> Judged:
    folder.read_config()
    judged = last_judged(folder.read_metrics())
    if not judged:
        raise RunFolderError(f"{folder.path}: nothing was evaluated yet")
    return list(judged.values())[-1]
