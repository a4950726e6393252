"""Every speed row in one table and one figure: `python -m benchmarks.speed_page`.

Reads `results/cpu.json` and `results/*-cpu.json`, measures nothing, and writes docs/speed.md
between its comments and docs/images/speed.png. A row that is behind something needs a word in
`BEHIND`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages import DOCS, replace_part

RESULTS = Path(__file__).parent / "results"
PAGE, FIGURE = DOCS / "speed.md", DOCS / "images" / "speed.png"
OTHERS = {"reference": ("published code", "#1f3b57"), "torch": ("PyTorch", "#e07a5f")}
UNSAID = ("cores", "dtype")
"""Sizes that are the same for all rows of a file, or are said elsewhere."""
PRODUCTS = "large products and their gradients, where XLA's on CPU trail oneDNN's"
BEHIND = {
    "environments/predator_prey": "PyTorch steps batched tensors and keeps none; ours keeps the "
    "whole roll-out, which is written to memory from 1024 environments on",
    "commformer/epoch": PRODUCTS,
    "merging/layer_batch_gradient": PRODUCTS,
    "merging/adapt_batch": PRODUCTS,
    "lsm/encode": PRODUCTS,
}
"""Why a row is behind: from profiles and counts of operations, said where the method's page is."""

Row = Mapping[str, Any]


def read() -> dict[str, dict[str, Any]]:
    """File name -> environment and rows, those of the judge as one row."""
    found = {}
    for file in sorted(RESULTS.glob("*cpu.json")):
        content = json.loads(file.read_text())
        content["rows"] = [row if "name" in row else _judged(row) for row in content["rows"]]
        found[file.name] = content
    return found


def behind(rows: Sequence[Row]) -> dict[str, float]:
    """Name -> the smallest ratio, of the rows that something is ahead of."""
    found: dict[str, float] = {}
    for row in rows:
        for other in OTHERS:
            ratio = row[f"ratio_{other}"]
            if ratio and round(ratio, 2) < 1:
                found[row["name"]] = min(ratio, found.get(row["name"], 1.0))
    return found


def content(files: Mapping[str, Mapping[str, Any]]) -> str:
    """What stands on the page between its comments.

    Args:
        files: of `read`.

    Returns:
        Markdown.
    """
    every = [row for one in files.values() for row in one["rows"]]
    compared = [row for row in every if any(row[f"ratio_{other}"] for other in OTHERS)]
    ratios = [row[f"ratio_{o}"] for row in compared for o in OTHERS if row[f"ratio_{o}"]]
    slower = behind(every)
    beside = f"{len(compared)} of them beside published code or PyTorch"
    below = sum(round(ratio, 2) < 1 for ratio in ratios)
    parts = [
        f"{len(every)} rows, {beside}: {len(ratios)} ratios, of which {below} are below 1.",
        "## Where something else is ahead",
        "\n".join(_line([["rows", "ratio", "why"]]))
        + "\n| --- | ---: | --- |\n"
        + "\n".join(_line([[n, f"{r:.2f}", BEHIND.get(n, "")] for n, r in slower.items()])),
    ]
    for name, one in files.items():
        parts += list(_section(name, one))
    return "\n\n".join(parts)


def _section(name: str, one: Mapping[str, Any]) -> Iterator[str]:
    own = one["environment"]
    cores = "1 core" if own.get("cores") == 1 else f"{own['cores']} cores" if "cores" in own else ""
    machine = own.get("processor") or own.get("note") or "machine not written down"
    facts = [own["date"][:10], f"jax {own['jax']}", cores, machine]
    yield f"## {name}"
    yield ", ".join(fact for fact in facts if fact) + "."
    head = ["row", "ours", "published code", "PyTorch", "MB, ours"]
    lines = [head, ["---", *["---:"] * 4]]
    for row in one["rows"]:
        ratios = [row[f"ratio_{other}"] for other in OTHERS]
        peak = row["ours"].get("peak_bytes")
        lines.append(
            [
                described(row),
                f"{_short(row['rate'])} {row['unit']}",
                *(f"{_short(ratio)}x" if ratio else "" for ratio in ratios),
                f"{_short(peak / 1e6)}" if peak else "",
            ]
        )
    yield "\n".join(_line(lines))


def described(row: Row) -> str:
    """A row's name and sizes."""
    sizes = [f"{k} {v}" for k, v in row["sizes"].items() if k not in UNSAID]
    return f"{row['name']}: {', '.join(sizes)}" if sizes else row["name"]


def draw(files: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """A line for every name, a dot for every ratio, logarithmic."""
    from matplotlib.ticker import FuncFormatter

    from jaxmethods.plotting import new_figure, open_frame, write_png

    rows = [row for one in files.values() for row in one["rows"]]
    rows = [row for row in rows if any(row[f"ratio_{other}"] for other in OTHERS)]
    names = list(dict.fromkeys(row["name"] for row in rows))[::-1]
    figure = new_figure(8.5, 0.19 * len(names) + 1.2)
    axis = figure.subplots()
    axis.axvspan(axis.get_xlim()[0], 1.0, color="#999999", alpha=0.12, linewidth=0)
    for other, (label, color) in OTHERS.items():
        dots = [(row[f"ratio_{other}"], names.index(row["name"])) for row in rows]
        dots = [(ratio, place) for ratio, place in dots if ratio]
        axis.plot(*zip(*dots, strict=True), "o", ms=5, color=color, alpha=0.75, label=label)
    axis.set_xscale("log")
    axis.set_xlim(0.5, None)
    axis.set_ylim(-0.8, len(names) - 0.2)
    axis.axvline(1.0, color="#555555", linewidth=1)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}x"))
    axis.set_xlabel("times as fast as; a dot for every size")
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)
    axis.legend(frameon=False, loc="lower right")
    open_frame(axis)
    write_png(figure, path, dpi=110)


def _judged(row: Row) -> dict[str, Any]:
    """The judge's row, which counts predictions, in the form of the others."""
    return {
        "name": "sql/judge",
        "sizes": {"predictions": row["predictions"], "databases": row["databases"]},
        "rate": row["predictions"] / row["seconds_ours"],
        "unit": "predictions/s",
        "ours": {},
        "ratio_reference": row["ratio"],
        "ratio_torch": None,
    }


def _short(number: float) -> str:
    """Three digits, without an exponent."""
    return f"{float(f'{number:.3g}'):,.12g}"


def _line(lines: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in lines]


def main() -> int:
    files = read()
    replace_part(PAGE, "rows", content(files))
    draw(files, FIGURE)
    print(f"{PAGE} and {FIGURE} are written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
