"""Every speed row in one table and one figure: `python -m benchmarks.speed_page`.

Reads `results/cpu.json` and `results/*-cpu.json`, one sweep on one machine, and the same files of
`results/epyc/`, which were measured before on another kind of processor. Measures nothing, and
writes docs/speed.md between its comments and docs/images/speed.png. A row that is behind something
needs a word in `BEHIND`.

Times of published code are stored numbers of the EPYC (`reference.json`), so that they are compared
with rows of that processor alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages import DOCS, replace_part

RESULTS = Path(__file__).parent / "results"
EPYC = RESULTS / "epyc"
PAGE, FIGURE = DOCS / "speed.md", DOCS / "images" / "speed.png"
OTHERS = {"reference": ("published code", "#1f3b57"), "torch": ("PyTorch", "#e07a5f")}
UNSAID = (("cores", 1), ("dtype", "float32"))
"""Sizes that are those of nearly all rows."""
PRODUCTS = "products of matrices, and what stands between them"
STACKS = f"{PRODUCTS}: layers copied out of stacks, and into stacks what their gradients need"
BEHIND = {
    "environments/predator_prey": "with 4096 environments and more the roll-out, which both keep, "
    "has left the caches",
    "commformer/epoch": "two thirds of a profile are products of width 64 and their gradients, a "
    "fifth additions of biases and of what goes around a layer",
    "merging/layer_batch_gradient": PRODUCTS,
    "merging/adapt_batch": PRODUCTS,
    "merging/tower_batch": PRODUCTS,
    "decoder/prefill": PRODUCTS,
    "lsm/encode": f"{PRODUCTS}; half of it is attention",
    "rsfm/mae_step_tiny": STACKS,
    "rsfm/mae_step_satmae": STACKS,
}
"""Why a row is behind: from profiles and counts of operations, said where the method's page is."""

Row = Mapping[str, Any]


def read(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """File name -> environment and rows, those of the judge as one row."""
    found = {}
    for file in sorted(folder.glob("*cpu.json")):
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


Files = Mapping[str, Mapping[str, Any]]


def content(files: Files, earlier: Files) -> str:
    """What stands on the page between its comments.

    Args:
        files: of `read`, the sweep.
        earlier: of `read`, those of the other processor; the same names of files.

    Returns:
        Markdown.
    """
    every = [row for one in files.values() for row in one["rows"]]
    before = [row for one in earlier.values() for row in one["rows"]]
    slower = behind([*every, *before])
    parts = [
        f"The sweep has {_counted(every)}; the EPYC {_counted(before)}.",
        "## Where something else is ahead",
        "The smallest ratio of a row, on either processor. A large product alone is as fast in XLA "
        "as in oneDNN (160 to 170 and 170 to 200 GFLOP/s on the Xeon); what stands between "
        "products is fused less.",
        "\n".join(_line([["rows", "ratio", "why"]]))
        + "\n| --- | ---: | --- |\n"
        + "\n".join(_line([[n, f"{r:.2f}", BEHIND.get(n, "")] for n, r in slower.items()])),
    ]
    for name, one in files.items():
        parts += list(_section(name, one, earlier[name]))
    return "\n\n".join(parts)


def _counted(rows: Sequence[Row]) -> str:
    compared = [row for row in rows if any(row[f"ratio_{other}"] for other in OTHERS)]
    ratios = [row[f"ratio_{o}"] for row in compared for o in OTHERS if row[f"ratio_{o}"]]
    below = sum(round(ratio, 2) < 1 for ratio in ratios)
    return (
        f"{len(rows)} rows, {len(compared)} of them beside somebody else's code: {len(ratios)} "
        f"ratios, of which {below} are below 1"
    )


def _section(name: str, one: Mapping[str, Any], before: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {name}"
    yield f"{_facts(one['environment'])}. EPYC: {_facts(before['environment'])}."
    published = any(row["ratio_reference"] for row in one["rows"])  # in the same run
    head = ["row", "ours", "published code" if published else "", "PyTorch", "MB, ours"]
    head = [title for title in head if title]
    lines = [[*head, "EPYC: ours", "published code", "PyTorch"]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    old = {described(row): row for row in before["rows"]}
    new = {described(row): row for row in one["rows"]}
    for row in {**new, **old}:
        own, other = new.get(row), old.get(row)
        here = [_rate(own), _ratio(own, "torch"), _peak(own)]
        if published:
            here.insert(1, _ratio(own, "reference"))
        there = [_rate(other), _ratio(other, "reference"), _ratio(other, "torch")]
        lines.append([row, *here, *there])
    yield "\n".join(_line(lines))


def _facts(own: Mapping[str, Any]) -> str:
    """When and where a file was measured."""
    cores = "1 core" if own.get("cores") == 1 else f"{own['cores']} cores" if "cores" in own else ""
    machine = own.get("processor") or own.get("note") or "machine not written down"
    return ", ".join(filter(None, [own["date"][:10], f"jax {own['jax']}", cores, machine]))


def _rate(row: Row | None) -> str:
    return f"{_short(row['rate'])} {row['unit']}" if row else ""


def _ratio(row: Row | None, other: str) -> str:
    ratio = row[f"ratio_{other}"] if row else None
    return f"{_short(ratio)}x" if ratio else ""


def _peak(row: Row | None) -> str:
    peak = row["ours"].get("peak_bytes") if row else None
    return _short(peak / 1e6) if peak else ""


def described(row: Row) -> str:
    """A row's name and sizes."""
    sizes = [f"{k} {v}" for k, v in row["sizes"].items() if (k, v) not in UNSAID]
    return f"{row['name']}: {', '.join(sizes)}" if sizes else row["name"]


def draw(files: Files, earlier: Files, path: Path) -> None:
    """A line for every name, a dot for every ratio, logarithmic; the EPYC's are hollow."""
    from matplotlib.ticker import FuncFormatter

    from jaxmethods.plotting import new_figure, open_frame, write_png

    rows = [(row, False) for one in files.values() for row in one["rows"]]
    rows += [(row, True) for one in earlier.values() for row in one["rows"]]
    rows = [(row, old) for row, old in rows if any(row[f"ratio_{other}"] for other in OTHERS)]
    names = list(dict.fromkeys(row["name"] for row, _ in rows))[::-1]
    figure = new_figure(8.5, 0.19 * len(names) + 1.2)
    axis = figure.subplots()
    axis.axvspan(0.3, 1.0, color="#999999", alpha=0.12, linewidth=0)
    for other, (label, color) in OTHERS.items():
        for old, machine in ((False, "Xeon"), (True, "EPYC")):
            dots = [
                (row[f"ratio_{other}"], names.index(row["name"])) for row, o in rows if o == old
            ]
            dots = [(ratio, place) for ratio, place in dots if ratio]
            style = {"mfc": "none" if old else color, "color": color, "alpha": 0.75}
            if dots:
                axis.plot(*zip(*dots, strict=True), "o", ms=5, label=f"{label}, {machine}", **style)
    axis.set_xscale("log")
    axis.set_xlim(0.3, None)
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
    files, earlier = read(), read(EPYC)
    replace_part(PAGE, "rows", content(files, earlier))
    draw(files, earlier, FIGURE)
    print(f"{PAGE} and {FIGURE} are written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
