"""Runs beside each other: the last evaluation of each as a table, their curves in one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmethods.files import write_atomically
from jaxmethods.numerics.statistics import markdown_table, summarize
from jaxmethods.records.run_folder import RunFolder, RunFolderError
from jaxmethods.reports import curves as figures
from jaxmethods.reports import page as pages
from jaxmethods.reports.report import label_of, result_of
from jaxmethods.reports.result import (
    Judged,
    describe,
    last_judged,
    read_environment,
    read_headline,
)

PANELS = 6
"""Metrics whose curves are drawn over each other."""


def compare(folders: Sequence[RunFolder]) -> str:
    """A row for each run: mean over seeds, with its standard error where there are several.

    The standard error is the sample standard deviation over the square root of the number of
    seeds. Of a run with several stages the last one that was evaluated counts.

    Raises:
        RunFolderError: a folder is not a run's, or nothing in it was evaluated yet.
    """
    rows = [_last_evaluation(folder).metrics for folder in folders]
    metrics = list(dict.fromkeys(name for row in rows for name in row))
    lines = []
    for title, row in zip(titles(folders), rows, strict=True):
        seeds = max(len(values) for values in row.values())
        cells = [str(summarize(row[name])) if name in row else "" for name in metrics]
        lines.append([title, str(seeds), *cells])
    return markdown_table(["run", "seeds", *metrics], lines)


def titles(folders: Sequence[RunFolder]) -> list[str]:
    """What runs are called: their folders' names, with as many above as tell them apart.

    Args:
        folders: of the runs.

    Returns:
        A title for each; those of one folder that is given twice are equal.
    """
    parts = [folder.path.absolute().parts for folder in folders]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        found = ["/".join(own[-depth:]) for own in parts]
        if len(set(found)) == len(set(parts)):
            return found
    return []


def write_page(folders: Sequence[RunFolder], path: Path) -> None:
    """Writes a page: the result of every run, curves over each other, all numbers folded.

    Args:
        folders: of the runs.
        path: the HTML file.

    Raises:
        RunFolderError: a folder is not a run's, or nothing in it was evaluated yet.
        FileError: the file cannot be written.
    """
    rows = [[{"stage": ""} | row for row in folder.read_metrics()] for folder in folders]
    judged = [last_judged(own) for own in rows]
    headlines = [
        result_of(one, read_headline(folder)) for folder, one in zip(folders, judged, strict=True)
    ]
    metrics = list(dict.fromkeys(name for names in headlines for name in names))
    head = ["run", *(label_of(full, metrics) for full in metrics)]
    lines = []
    for title, found in zip(titles(folders), judged, strict=True):
        cells = [title]
        for full in metrics:
            stage, _, name = full.partition("/")
            values = found[stage].metrics.get(name) if stage in found else None
            cells.append("" if values is None else str(summarize(values)))
        lines.append(cells)
    table = markdown_table(head, lines)
    title = f"{len(folders)} runs beside each other"
    every = pages.markdown(compare(folders))
    sections = [
        f"<h1>{title}</h1><p class=lead>mean ± standard error over seeds, which is shaded</p>",
        pages.markdown(table),
        _overlaid(folders, rows, metrics),
        pages.fold("All numbers of the last evaluation", every),
    ]
    write_atomically(path, pages.document(title, sections))


def _overlaid(folders: Sequence[RunFolder], rows: Sequence[Any], headline: Sequence[str]) -> str:
    """Panels of the metrics that runs share, those of the result first."""
    found = [figures.curves_of(own) for own in rows]
    merged = {key: curve for curves in found for key, curve in curves.items()}
    shared = {
        key: curve
        for key, curve in merged.items()
        if sum(key in curves for curves in found) > 1 or len(folders) == 1
    }
    for key in [key for key, curve in shared.items() if _same_in_all(key, curve, found)]:
        del shared[key]
    panels = []
    for curve in figures.most_important(shared, headline, PANELS):
        key = curve.stage, curve.name
        runs = {
            title: curves[key]
            for title, curves in zip(titles(folders), found, strict=True)
            if key in curves
        }
        title = f"{figures.titled(curve.stage)}: {figures.worded(curve.short)}".removeprefix(": ")
        panels.append(pages.drawing(figures.curve_svg(runs, title), title))
    return f"<div class=curves>{''.join(panels)}</div>" if panels else ""


def _same_in_all(key: Any, curve: figures.Curve, found: Sequence[Any]) -> bool:
    """Whether several runs have the same curve, as of the steps that they have taken."""
    own = [curves[key].values for curves in found if key in curves]
    return len(own) > 1 and all(np.array_equal(one, curve.values) for one in own)


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
