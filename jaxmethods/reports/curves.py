"""Learning curves: those that matter on a page, all of a stage, several runs' over each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxmethods.numerics.statistics import standard_error
from jaxmethods.plotting import INK, TEXT, new_figure, open_frame, themed_svg, write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3
HIDDEN = ("stage", "step", "seconds")
JUDGED = ("evaluate/", "curve/")
CURVE = 3
"""Fewer points than these are no learning curve."""
CHOSEN = ("steps_per_second", "train/rate", "train/learning_rate")
"""What is no result: speeds, and schedules that the config says."""
SHORT = {"cls": "CLS", "ewemoe": "E-WEMoE", "kid": "KID", "mae": "MAE", "miou": "mIoU"}
SHORT |= {"rl": "RL", "sql": "SQL", "wemoe": "WEMoE", "wer": "WER"}
"""Short names as papers write them."""

Rows = Sequence[Mapping[str, Any]]


class Curve(NamedTuple):
    """A metric of a stage along its training."""

    stage: str
    name: str
    """As in the record, "evaluate/success_rate"."""
    steps: np.ndarray
    """[P]"""
    values: np.ndarray
    """[P, seeds]"""

    @property
    def title(self) -> str:
        """Words for a person."""
        return titled(self.short)

    @property
    def short(self) -> str:
        """The name without what it was measured in."""
        return self.name.partition("/")[2] or self.name


def titled(name: str) -> str:
    """The name of a metric as words that begin with a capital."""
    words = worded(name)
    return words if words.split(" ")[0] in SHORT.values() else words[:1].upper() + words[1:]


def worded(name: str) -> str:
    """The name of a metric as words."""
    return " ".join(SHORT.get(word, word) for word in name.replace("_", " ").split(" "))


def metric_names(rows: Rows) -> list[str]:
    """Names of the metrics in the rows: evaluation first, then training, in order of appearance."""
    names = dict.fromkeys(name for row in rows for name in row if name not in HIDDEN)
    return sorted(names, key=lambda name: not name.startswith(JUDGED))


def series(rows: Rows, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [P] and values [P, S] of one metric over S seeds."""
    points = [(row["step"], np.atleast_1d(row[name])) for row in rows if name in row]
    return np.array([p[0] for p in points]), np.array([p[1] for p in points], float)


def curves_of(rows: Rows) -> dict[tuple[str, str], Curve]:
    """(stage, name) -> every metric that has enough points, but for speeds."""
    found = {}
    for stage in dict.fromkeys(row.get("stage", "") for row in rows):
        own = [row for row in rows if row.get("stage", "") == stage]
        for name in metric_names(own):
            curve = Curve(stage, name, *series(own, name))
            if len(curve.steps) >= CURVE and name != "steps_per_second":
                found[stage, name] = curve
    return found


def most_important(
    curves: Mapping[tuple[str, str], Curve], headline: Sequence[str], count: int = 3
) -> list[Curve]:
    """The curves of the result first, then what was judged and the loss of the latest stages.

    Args:
        curves: of `curves_of`.
        headline: metrics that are the result, "stage/name".
        count: how many at most.

    Returns:
        Curves, the most important first; those that never change say nothing, nor do schedules.
    """
    named = [full.partition("/") for full in headline]
    first = [(stage, prefix + name) for stage, _, name in named for prefix in JUDGED]
    stages = list(dict.fromkeys(stage for stage, _ in curves))[::-1]
    of_stage = [[key for key in curves if key[0] == stage] for stage in stages]
    judged = [key for keys in of_stage for key in keys[:1] if key[1].startswith(JUDGED)]
    losses = [(stage, "train/loss") for stage in stages]
    rest = [key for keys in of_stage for key in keys]
    order = dict.fromkeys([*first, *judged, *losses, *rest])
    chosen = [curves[key] for key in order if key in curves and key[1] not in CHOSEN]
    return [curve for curve in chosen if np.ptp(curve.values) != 0][:count]


def curve_svg(curves: Mapping[str, Curve], title: str) -> str:
    """One panel: a curve, or several runs' by their labels, seeds shaded as a standard error.

    Args:
        curves: label -> curve; one alone needs no label.
        title: of the panel.

    Returns:
        An SVG image that is readable on light and on dark.
    """
    import matplotlib

    figure = new_figure(4.4, 2.7)
    panel = figure.subplots()
    colors = [INK] if len(curves) == 1 else matplotlib.color_sequences["tab10"]
    for index, (label, curve) in enumerate(curves.items()):
        _curve(panel, curve.steps, curve.values, colors[index % len(colors)], label)
    if len(curves) > 1:
        panel.legend(frameon=False, fontsize=8, labelcolor=TEXT)
    panel.set_title(title, fontsize=11, loc="left", color=TEXT)
    panel.set_xlabel("step", fontsize=9, color=TEXT)
    panel.tick_params(labelsize=9, colors=TEXT)
    panel.spines[:].set_color(TEXT)
    panel.grid(alpha=0.15, color=TEXT)
    open_frame(panel)
    return themed_svg(figure)


def learning_curves(rows: Rows, path: Path, without: Iterable[str] = ()) -> None:
    """Draws one panel a metric; over several seeds the mean and a band of one standard error.

    Args:
        rows: of one stage.
        path: the PNG file.
        without: metrics that are shown elsewhere; where no other is left, nothing is drawn and an
            older drawing goes.
    """
    names = [name for name in metric_names(rows) if name not in set(without)]
    if not names:
        path.unlink(missing_ok=True)
        return
    lines = -(-len(names) // COLUMNS)
    figure = new_figure(4.2 * COLUMNS, 2.6 * lines)
    panels = figure.subplots(lines, COLUMNS, squeeze=False).ravel()
    for panel, name in zip(panels, names, strict=False):
        _curve(panel, *series(rows, name))
        panel.set_title(name.replace("_", " "), fontsize=10, loc="left")
        panel.set_xlabel("step", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.25)
        open_frame(panel)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    write_png(figure, path)


def _curve(
    panel: Axes, steps: np.ndarray, values: np.ndarray, color: Any = INK, label: str | None = None
) -> None:
    mean = values.mean(1)
    mark = "." if len(steps) < 40 else None
    panel.plot(steps, mean, color=color, linewidth=1.6, marker=mark, label=label)
    if values.shape[1] > 1:
        error = standard_error(values, 1)
        panel.fill_between(steps, mean - error, mean + error, color=color, alpha=0.25, linewidth=0)
