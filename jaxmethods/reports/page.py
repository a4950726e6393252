"""Pieces of a page that a person reads in a browser: one file, light or dark, phone or desk."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

IMAGE_TYPES = {".png": "image/png", ".gif": "image/gif"}
SOUND_TYPES = {".wav": "audio/wav"}
STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1d2733; --soft: #5b6b7b; --line: #dde3e9;
        --box: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14191f; --ink: #e3e8ed; --soft: #9aa8b5; --line: #323b45; --box: #1d242c; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
       max-width: 1080px; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.1rem; margin: 0; font-weight: 600; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p.lead { color: var(--soft); margin: .1rem 0 1rem; font-size: .9rem; }
p.headline { font-size: 1.5rem; line-height: 1.3; margin: .8rem 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: .6rem;
         margin: 1rem 0; padding: 0; }
.tiles li { list-style: none; background: var(--box); border-radius: 6px; padding: .5rem .8rem;
            font-size: .85rem; color: var(--soft); }
.tiles b { display: block; color: var(--ink); font-size: 1.15rem; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr));
          gap: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; overflow-wrap: normal; margin: .5rem 0; }
td, th { text-align: left; padding: .25rem 1.1rem .25rem 0; vertical-align: top;
         border-bottom: 1px solid var(--line); }
td.number { font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; } figcaption { color: var(--soft); font-size: .85rem; }
img { max-width: 100%; height: auto; } .curves img { width: 100%; }
img.paper { background: #fff; border-radius: 6px; padding: 6px; }
@media (max-width: 640px) { /* labels of a figure that is made smaller than this can't be read */
  figure { overflow-x: auto; } img.paper:not([src^='data:image/gif']) { max-width: 600px; } }
details { border-top: 1px solid var(--line); padding: .6rem 0; }
summary { cursor: pointer; font-weight: 600; }
pre { background: var(--box); padding: 1rem; overflow-x: auto; font-size: .85rem;
      overflow-wrap: normal; }
audio { max-width: 100%; }
"""


def document(title: str, sections: Sequence[str]) -> str:
    """A page that needs no other file.

    Args:
        title: of the page, not yet escaped.
        sections: HTML.

    Returns:
        The whole document.
    """
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
        f"<body>{''.join(sections)}</body></html>\n"
    )


def fold(summary: str, content: str) -> str:
    """What is shown when it is asked for; nothing where there is nothing."""
    return f"<details><summary>{summary}</summary>{content}</details>" if content else ""


def table(pairs: Iterable[tuple[Any, Any]]) -> str:
    """Names and values, a line each."""
    lines = "".join(
        f"<tr><td>{html.escape(str(name).replace('_', ' '))}</td><td class=number>"
        f"{html.escape(str(value))}</td></tr>"
        for name, value in pairs
    )
    return f"<div class=wide><table>{lines}</table></div>" if lines else ""


def markdown(text: str) -> str:
    """Blocks of Markdown: tables, lists of lines that begin with "- ", paragraphs."""
    return "".join(map(_block, re.split(r"\n\s*\n", text.strip())))


def image(path: Path) -> str:
    """A figure or a sound with its name; figures have white behind them. Nothing where another
    report of the run has just taken it away."""
    try:
        data = base64.b64encode(path.read_bytes()).decode()
    except FileNotFoundError:
        return ""
    caption = html.escape(path.stem.replace("_", " "))
    if path.suffix in SOUND_TYPES:
        shown = f"<audio controls src='data:{SOUND_TYPES[path.suffix]};base64,{data}'></audio>"
    else:
        source = f"data:{IMAGE_TYPES[path.suffix]};base64,{data}"
        shown = f"<img class=paper alt='{caption}' src='{source}'>"
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def drawing(svg: str, title: str) -> str:
    """An SVG image as wide as its place."""
    data = base64.b64encode(svg.encode()).decode()
    return f"<img alt='{html.escape(title)}' src='data:image/svg+xml;base64,{data}'>"


def _block(text: str) -> str:
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
    return f"<div class=wide><table><tr>{first}</tr>{rows}</table></div>"
