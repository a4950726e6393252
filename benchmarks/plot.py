"""Rates against sizes, one line for each environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = ("#1f3b57", "#d1495b", "#2a9d5c", "#7b5ea7")


def draw(rows: Sequence[Mapping[str, Any]], environment: Mapping[str, Any], path: Path) -> None:
    """Draws environment steps/s against parallel environments into a PNG."""
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    swept = [row for row in rows if row["name"].startswith("environments/")]
    for name, colour in zip(dict.fromkeys(row["name"] for row in swept), COLOURS, strict=False):
        own = [row for row in swept if row["name"] == name]
        sizes = [row["sizes"]["environments"] for row in own]
        label = name.split("/")[1].replace("_", " ")
        panel.loglog(sizes, [row["rate"] for row in own], "o-", color=colour, label=label)
        if own[0]["reference"]:
            panel.axhline(own[0]["reference"]["rate"], color=colour, linestyle=":", linewidth=1)
    cores = f"{environment['cores']} cores" if environment["cores"] > 1 else "1 core"
    panel.set_title(f"jax {environment['jax']}, {environment['devices']}, {cores}", fontsize=10)
    panel.set(xlabel="environments in parallel", ylabel="environment steps per second")
    panel.grid(alpha=0.3, which="both")
    panel.legend(title="dotted: reference code, one process", frameon=False)
    figure.savefig(path, dpi=130)
