"""`report.html`: one self-contained page on a run, built from its folder alone."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmethods.files import refusals, write_atomically
from jaxmethods.numerics.statistics import summarize
from jaxmethods.records.run_folder import RunFolder
from jaxmethods.reports import curves as figures
from jaxmethods.reports.result import (
    Judged,
    last_judged,
    named,
    read_environment,
    read_headline,
)

CURVE = 3
"""Fewer points than these are no learning curve."""
CURVES = "curves_"
IMAGE_TYPES = {".png": "image/png", ".gif": "image/gif"}
SOUND_TYPES = {".wav": "audio/wav"}
STYLE = """
:root { --ink: #1d2733; --soft: #5b6b7b; --line: #dde3e9; --accent: #1f3b57; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 1080px;
       margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem;
     border-bottom: 1px solid var(--line); padding-bottom: .3rem; }
p.lead { color: var(--soft); margin-top: .2rem; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .25rem 1.2rem .25rem 0;
     border-bottom: 1px solid var(--line); } td.number { font-variant-numeric: tabular-nums; }
figure { margin: 1.2rem 0; } figcaption { color: var(--soft); font-size: .9rem; }
img { max-width: 100%; } pre { background: #f6f8fa; padding: 1rem; overflow-x: auto;
     font-size: .85rem; }
.gallery { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start; }
"""


def write_report(folder: RunFolder) -> None:
    """Draws the learning curves and writes the page. Other figures are taken as they are."""
    rows = [{"stage": "", "seconds": 0.0} | row for row in folder.read_metrics()]
    with refusals(folder.figures):
        folder.figures.mkdir(exist_ok=True)
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    for stage in stages:
        own = [row for row in rows if row["stage"] == stage]
        if len(own) >= CURVE:
            figures.learning_curves(own, folder.figures / f"{CURVES}{stage}.png")
    with refusals(folder.path, "read"):
        page = _page(folder, rows, stages)
    write_atomically(folder.report, page)


def _page(folder: RunFolder, rows: Sequence[Mapping[str, Any]], stages: Sequence[str]) -> str:
    title = html.escape(folder.path.name)
    seconds = max((row["seconds"] or 0.0 for row in rows), default=0.0)
    lead = f"{len(stages)} stages" if len(stages) > 1 else "".join(stages) or "no steps yet"
    shown = {*IMAGE_TYPES, *SOUND_TYPES}
    drawn = sorted(p for p in folder.figures.iterdir() if p.suffix in shown)
    curves = [folder.figures / f"{CURVES}{stage}.png" for stage in stages]
    others = [path for path in drawn if not path.stem.startswith(CURVES)]
    judged, headline = last_judged(rows), read_headline(folder)
    sections = [
        f"<h1>{title}</h1><p class=lead>{html.escape(lead)}, {seconds:.0f} s</p>",
        "<h2>Result</h2>" + _headline(judged, headline) + _written_table(folder),
        f"<div class=gallery>{''.join(map(_figure, others))}</div>",
        "<h2>Last evaluation of every stage</h2>" + _stages(judged),
        "<h2>Learning curves</h2>" + "".join(_figure(path) for path in curves if path in drawn),
        f"<h2>Config</h2><pre>{html.escape(folder.config.read_text())}</pre>",
        "<h2>Environment</h2>" + _table(read_environment(folder).items()),
    ]
    return _document(folder.path.name, sections)


def _document(title: str, sections: Sequence[str]) -> str:
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        f"<style>{STYLE}</style><body>{''.join(sections)}</body></html>\n"
    )


def _written_table(folder: RunFolder) -> str:
    """`table.md` of the run folder, if the recipe wrote one, as HTML."""
    file = folder.path / "table.md"
    if not file.is_file():
        return ""
    blocks = re.split(r"\n\s*\n", file.read_text().strip())
    return "".join(map(_block, blocks))


def _block(text: str) -> str:
    """One block of Markdown: a table, a list of lines that begin with "- ", or a paragraph."""
    if text.startswith("- "):
        items = re.split(r"\n- ", text[2:])
        return f"<ul>{''.join(f'<li>{html.escape(item)}</li>' for item in items)}</ul>"
    if not text.startswith("|"):
        return f"<p>{html.escape(text)}</p>"
    # A bar ends every cell, also one that is empty.
    lines = [re.split(r" *\| ?", line.strip())[1:-1] for line in text.splitlines()]
    head, _, *body = [[html.escape(cell.strip()) for cell in line] for line in lines]
    first = "".join(f"<th>{cell}</th>" for cell in head)
    rows = "".join(
        f"<tr><td>{name}</td>{''.join(f'<td class=number>{cell}</td>' for cell in cells)}</tr>"
        for name, *cells in body
    )
    return f"<table><tr>{first}</tr>{rows}</table>"


def _headline(judged: Mapping[str, Judged], headline: Sequence[str]) -> str:
    """What the recipe's author names as the result."""
    rows = [(name, summarize(values)) for name, values in named(headline, judged)]
    return _table(rows) if rows else "" if judged else "<p>Nothing was evaluated yet.</p>"


def _stages(judged: Mapping[str, Judged]) -> str:
    """The last evaluation of every stage, mean and standard error over seeds."""
    tables = []
    for stage, last in judged.items():
        seeds = max(map(len, last.metrics.values()))
        over = f", mean ± standard error over {seeds} seeds" if seeds > 1 else ""
        heading = f"<p>{html.escape(stage)}, step {last.step}{over}</p>"
        values = [(name, summarize(value)) for name, value in last.metrics.items()]
        tables.append(heading + _table(values))
    return "".join(tables)


def _table(pairs: Any) -> str:
    lines = "".join(
        f"<tr><td>{html.escape(str(name).replace('_', ' '))}</td><td class=number>"
        f"{html.escape(str(value))}</td></tr>"
        for name, value in pairs
    )
    return f"<table>{lines}</table>"


def _figure(path: Any) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    caption = html.escape(path.stem.replace("_", " "))
    if path.suffix in SOUND_TYPES:
        kind = SOUND_TYPES[path.suffix]
        return (
            f"<figure><audio controls src='data:{kind};base64,{data}'></audio>"
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return (
        f"<figure><img alt='{caption}' src='data:{IMAGE_TYPES[path.suffix]};base64,{data}'>"
        f"<figcaption>{caption}</figcaption></figure>"
    )
