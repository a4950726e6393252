"""Figures of a run: accuracies of all models, accumulated errors, accuracies by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxmethods.kid.recipes.judging import Judged
from jaxmethods.numerics.statistics import standard_error
from jaxmethods.plotting import new_figure, open_frame, write_png

COLORS = ("#1f3b57", "#d98a2b", "#5f8f6f", "#9fb2c4", "#8c4a5c", "#5b6b7b")


def draw_execution(judged: Judged, path: Path) -> None:
    """Bars: execution accuracy of every model on every split, with errors over questions."""
    titles, splits = judged.titles, judged.splits
    figure = new_figure(2.0 + 1.1 * len(titles), 3.4)
    panel = figure.subplots()
    width = 0.8 / len(splits)
    for number, split in enumerate(splits):
        values = [judged.verdicts[title][split].execution for title in titles]
        means = [100 * value.mean() for value in values]
        errors = [100 * standard_error(value.mean(0)) for value in values]
        places = np.arange(len(titles)) + (number - (len(splits) - 1) / 2) * width
        color = COLORS[number % len(COLORS)]
        panel.bar(places, means, width, yerr=errors, label=split, color=color, ecolor="#1d2733")
    panel.set_xticks(range(len(titles)), titles)
    panel.set_ylabel("execution accuracy (%)")
    panel.set_ylim(0, 100)
    panel.legend(fontsize=8, frameon=False)
    open_frame(panel)
    write_png(figure, path)


def draw_exposure(judged: Judged, path: Path) -> None:
    """Lines: how much further students drift on their own responses, by length."""
    figure = new_figure(6.0, 3.4)
    panel = figure.subplots()
    for number, title in enumerate(one for one in judged.titles if one in judged.exposure):
        curves = judged.exposure[title].curves
        length = np.arange(1, curves.shape[1] + 1)
        color = COLORS[number % len(COLORS)]
        panel.plot(length, curves.mean(0), label=title, color=color)
    panel.axhline(0, color="#dde3e9", zorder=0)
    panel.set_xlabel("tokens of a response")
    panel.set_ylabel("excess of accumulated error (%)")
    panel.legend(fontsize=8, frameon=False)
    open_frame(panel)
    write_png(figure, path)


def draw_steps(curves: Mapping[str, Sequence[tuple[int, float]]], path: Path) -> None:
    """Lines: execution accuracy of every model while it trains."""
    figure = new_figure(6.0, 3.4)
    panel = figure.subplots()
    for number, (title, points) in enumerate(curves.items()):
        steps, values = zip(*points, strict=True)
        color = COLORS[number % len(COLORS)]
        panel.plot(steps, [100 * v for v in values], marker=".", label=title, color=color)
    panel.set_xlabel("steps")
    panel.set_ylabel("execution accuracy (%)")
    panel.legend(fontsize=8, frameon=False)
    open_frame(panel)
    write_png(figure, path)
