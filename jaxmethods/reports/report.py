"""`report.html`: one self-contained page on a run, built from its folder alone.

A person reads it in a minute: the result as a sentence, the curves that matter, two figures. All
else is folded. Every number of the last evaluations is on it once.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmethods.files import refusals, write_atomically
from jaxmethods.numerics.statistics import Summary, summarize
from jaxmethods.records.run_folder import RunFolder
from jaxmethods.reports import curves as figures
from jaxmethods.reports import page as pages
from jaxmethods.reports.curves import Curve, titled, worded
from jaxmethods.reports.result import (
    Judged,
    last_judged,
    read_environment,
    read_headline,
)

CURVES = "curves_"
ERROR = "_error"
"""What follows the name of a metric in that of its standard error within a seed."""
FIGURES = 2
"""How many of a recipe's figures are not folded."""
FALLBACK = 3
"""How many numbers of the last evaluation stand for the result of a run that names none."""


def write_report(folder: RunFolder) -> None:
    """Draws the learning curves and writes the page. Other figures are taken as they are."""
    rows = [{"stage": "", "seconds": 0.0} | row for row in folder.read_metrics()]
    headline = result_of(last_judged(rows), read_headline(folder))
    shown = figures.most_important(figures.curves_of(rows), headline)
    with refusals(folder.figures):
        folder.figures.mkdir(exist_ok=True)
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    for stage in stages:
        own = [row for row in rows if row["stage"] == stage]
        if len(own) >= figures.CURVE:
            file = folder.figures / f"{CURVES}{stage}.png"
            own_shown = [curve.name for curve in shown if curve.stage == stage]
            with refusals(folder.figures):
                figures.learning_curves(own, file, without=own_shown)
    with refusals(folder.path, "read"):
        page = _page(folder, rows, stages, headline, shown)
    write_atomically(folder.report, page)


def result_of(judged: Mapping[str, Judged], headline: Sequence[str]) -> list[str]:
    """The metrics "stage/name" that the page begins with.

    Args:
        judged: what was measured.
        headline: what the recipe names as the result.

    Returns:
        Those of the headline that were measured; where there are none, the first of the last stage.
    """
    measured = [
        full
        for full in headline
        if (stage := judged.get(full.partition("/")[0])) is not None
        and full.partition("/")[2] in stage.metrics
    ]
    if measured or not judged:
        return measured
    stage, last = list(judged.items())[-1]
    return [f"{stage}/{name}" for name in list(last.metrics)[:FALLBACK]]


def label_of(full: str, headline: Sequence[str]) -> str:
    """A headline's metric in words; with its stage where another has a metric of that name."""
    names = [one.partition("/")[2] for one in headline]
    stage, _, name = full.partition("/")
    words = f"{stage}: {name}" if names.count(name) > 1 else name
    return worded(words)


def _page(
    folder: RunFolder,
    rows: Sequence[Mapping[str, Any]],
    stages: Sequence[str],
    headline: Sequence[str],
    shown: Sequence[Curve],
) -> str:
    seconds = max((row["seconds"] or 0.0 for row in rows), default=0.0)
    lead = f"{len(stages)} stages" if len(stages) > 1 else "".join(stages) or "no steps yet"
    judged = last_judged(rows)
    own = [row for row in rows if headline and row["stage"] == headline[0].partition("/")[0]]
    trains = any(name.startswith("train/") for row in own for name in row)
    kinds = {*pages.IMAGE_TYPES, *pages.SOUND_TYPES}
    drawn = sorted(p for p in folder.figures.iterdir() if p.suffix in kinds)
    curves = [path for path in drawn if path.stem.startswith(CURVES)]
    others = [path for path in drawn if path not in curves]
    first = [path for path in others if path.suffix in pages.IMAGE_TYPES][:FIGURES]
    rest = [path for path in others if path not in first]
    written = folder.path / "table.md"
    sections = [
        f"<h1>{html.escape(folder.path.name)}</h1>"
        f"<p class=lead>{html.escape(lead)}, {seconds:.0f} s</p>",
        _headline(judged, headline, trains),
        _curves(shown),
        *map(pages.image, first),
        pages.fold(
            "Tables",
            pages.markdown(written.read_text(encoding="utf-8")) if written.is_file() else "",
        ),
        pages.fold("More figures", "".join(map(pages.image, rest))),
        pages.fold("All learning curves", "".join(map(pages.image, curves))),
        pages.fold("Other numbers of the last evaluations", _stages(judged, headline)),
        pages.fold(
            "Config", f"<pre>{html.escape(folder.config.read_text(encoding='utf-8'))}</pre>"
        ),
        pages.fold("Environment", pages.table(read_environment(folder).items())),
    ]
    return pages.document(folder.path.name, sections)


def _headline(judged: Mapping[str, Judged], headline: Sequence[str], trains: bool) -> str:
    """The result: a sentence with the first metric, tiles with the others.

    `trains`: the first is of a stage that trains, whose steps mean something.
    """
    if not headline:
        return "<p class=headline>Nothing was evaluated yet.</p>"
    first, *others = [
        (html.escape(label_of(full, headline)), _summary(judged, full)) for full in headline
    ]
    stage, _, name = headline[0].partition("/")
    seeds = len(judged[stage].metrics[name])
    if seeds > 1:
        over = f"the mean of {seeds} seeds and its standard error"
    elif _own_error(judged, headline[0]) is not None:
        over = "one seed, the standard error is of its own evaluation"
    else:
        over = "one seed"
    when = f" after step {judged[stage].step}" if trains else ""
    tiles = "".join(f"<li><b>{number}</b>{label}</li>" for label, number in others)
    return f"<p class=headline>{titled(first[0])} is <b>{first[1]}</b>{when} ({over}).</p>" + (
        f"<ul class=tiles>{tiles}</ul>" if tiles else ""
    )


def _summary(judged: Mapping[str, Judged], full: str) -> Summary:
    """Over seeds; of one seed with the error that was measured beside it, if it was."""
    stage, _, name = full.partition("/")
    over_seeds = summarize(judged[stage].metrics[name])
    return (
        over_seeds
        if over_seeds.error is not None
        else Summary(over_seeds.mean, _own_error(judged, full))
    )


def _own_error(judged: Mapping[str, Judged], full: str) -> float | None:
    """The metric NAME_error of a single seed."""
    stage, _, name = full.partition("/")
    values = judged[stage].metrics.get(name + ERROR)
    return float(values[0]) if values is not None and len(values) == 1 else None


def _curves(shown: Sequence[Curve]) -> str:
    several = len({curve.stage for curve in shown}) > 1
    panels = []
    for curve in shown:
        title = f"{titled(curve.stage)}: {worded(curve.short)}" if several else curve.title
        panels.append(pages.drawing(figures.curve_svg({"": curve}, title), title))
    return f"<div class=curves>{''.join(panels)}</div>" if panels else ""


def _stages(judged: Mapping[str, Judged], headline: Sequence[str]) -> str:
    """The last evaluation of every stage, without what the page begins with."""
    tables = []
    for stage, last in judged.items():
        values = [
            (name, summarize(value))
            for name, value in last.metrics.items()
            if f"{stage}/{name}" not in headline
            and not (len(value) == 1 and f"{stage}/{name.removesuffix(ERROR)}" in headline)
        ]
        if values:
            tables.append(f"<p>{html.escape(stage)}, step {last.step}</p>{pages.table(values)}")
    return "".join(tables)
