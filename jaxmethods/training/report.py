"""`report.html`: one self-contained page on a run, built from its folder alone."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxmethods.files import is_file, refusals, write_atomically
from jaxmethods.training import figures
from jaxmethods.training.run_folder import RunFolder, RunFolderError

IMAGE_TYPES = {".png": "image/png", ".gif": "image/gif"}
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
    for stage in dict.fromkeys(row["stage"] for row in rows):
        own = [row for row in rows if row["stage"] == stage]
        figures.learning_curves(own, folder.figures / f"curves_{stage}.png")
    with refusals(folder.path, "read"):
        page = _page(folder, rows, _environment(folder))
    write_atomically(folder.report, page)


def write_evaluation(folder: RunFolder, metrics: Mapping[str, float]) -> None:
    """The page of an evaluation without training: its numbers, and the figures that are there."""
    drawn = sorted(p for p in folder.figures.iterdir() if p.suffix in IMAGE_TYPES)
    environment = _environment(folder)
    sections = [
        f"<h1>{html.escape(folder.path.name)}</h1>",
        "<h2>Result</h2>" + _table((name, f"{value:.4g}") for name, value in metrics.items()),
        f"<div class=gallery>{''.join(map(_figure, drawn))}</div>",
        f"<h2>Config</h2><pre>{html.escape(folder.config.read_text())}</pre>",
        "<h2>Environment</h2>" + _table(environment.items()),
    ]
    write_atomically(folder.report, _document(folder.path.name, sections))


def _environment(folder: RunFolder) -> Mapping[str, Any]:
    if not is_file(folder.environment):
        return {}
    try:
        return dict(json.loads(folder.environment.read_text()))
    except (ValueError, TypeError) as error:
        raise RunFolderError(f"{folder.environment}: is not a JSON object") from error


def _page(folder: RunFolder, rows: Sequence[Mapping[str, Any]], environment: Mapping) -> str:
    title = html.escape(folder.path.name)
    seconds = rows[-1]["seconds"] if rows else 0.0
    steps = f"{rows[-1]['step']} steps of stage {rows[-1]['stage']}" if rows else "no steps yet"
    drawn = sorted(p for p in folder.figures.iterdir() if p.suffix in IMAGE_TYPES)
    curves = [path for path in drawn if path.stem.startswith("curves_")]
    others = [path for path in drawn if path not in curves]
    sections = [
        f"<h1>{title}</h1><p class=lead>{html.escape(steps)}, {seconds:.0f} s</p>",
        "<h2>Result</h2>" + _written_table(folder) + _results(rows),
        f"<div class=gallery>{''.join(map(_figure, others))}</div>",
        "<h2>Learning curves</h2>" + "".join(map(_figure, curves)),
        f"<h2>Config</h2><pre>{html.escape(folder.config.read_text())}</pre>",
        "<h2>Environment</h2>" + _table(environment.items()),
    ]
    return _document(folder.path.name, sections)


def _document(title: str, sections: Sequence[str]) -> str:
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        f"<style>{STYLE}</style><body>{''.join(sections)}</body></html>\n"
    )


def _written_table(folder: RunFolder) -> str:
    """`table.md` of the run folder, if a stage exported one, as HTML."""
    file = folder.path / "table.md"
    if not file.is_file():
        return ""
    lines = [line.strip("| \n").split(" | ") for line in file.read_text().splitlines()]
    head, _, *body = [[html.escape(cell) for cell in line] for line in lines]
    first = "".join(f"<th>{cell}</th>" for cell in head)
    rows = "".join(
        f"<tr><td>{name}</td>{''.join(f'<td class=number>{cell}</td>' for cell in cells)}</tr>"
        for name, *cells in body
    )
    return f"<table><tr>{first}</tr>{rows}</table>"


def _results(rows: Sequence[Mapping[str, Any]]) -> str:
    """The last evaluation of every stage, mean and standard error over seeds."""
    tables = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        evaluated = [
            row for row in rows if row["stage"] == stage and any("evaluate/" in k for k in row)
        ]
        if not evaluated:
            continue
        last = evaluated[-1]
        values = [(k[9:], _number(v)) for k, v in last.items() if k.startswith("evaluate/")]
        heading = f"<p>Stage {html.escape(stage)}, evaluated at step {last['step']}</p>"
        tables.append(heading + _table(values))
    return "".join(tables) or "<p>Nothing was evaluated yet.</p>"


def _number(value: Any) -> str:
    values = np.atleast_1d(np.asarray(value, float))  # None, not finite, becomes NaN
    mean = f"{values.mean():.4g}"
    if len(values) == 1:
        return mean
    error = values.std(ddof=1) / np.sqrt(len(values))
    return f"{mean} &plusmn; {error:.2g} (standard error, {len(values)} seeds)"


def _table(pairs: Any) -> str:
    lines = "".join(
        f"<tr><td>{html.escape(str(name).replace('_', ' '))}</td><td class=number>{value}</td></tr>"
        for name, value in pairs
    )
    return f"<table>{lines}</table>"


def _figure(path: Any) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    caption = html.escape(path.stem.replace("_", " "))
    return (
        f"<figure><img alt='{caption}' src='data:{IMAGE_TYPES[path.suffix]};base64,{data}'>"
        f"<figcaption>{caption}</figcaption></figure>"
    )
