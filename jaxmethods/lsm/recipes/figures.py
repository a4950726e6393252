"""Figures of a run: copying and following by student, attention by layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxmethods.lsm import bias
from jaxmethods.lsm.grammar import ASKED
from jaxmethods.lsm.recipes.judging import Judged, sensitivities, values_of
from jaxmethods.lsm.recipes.world import JUDGED
from jaxmethods.numerics.statistics import bootstrap_interval
from jaxmethods.plotting import new_figure, open_frame, write_png

COLORS = ("#1f3b57", "#d98a2b", "#5f8f6f", "#9fb2c4", "#8c4a5c", "#5b6b7b")


def draw_behavior(judged: Judged, path: Path) -> None:
    """Bars with intervals over clips: copies, follows, sensitivity, for every student and split."""
    titles = list(judged.speech)
    figure = new_figure(3.2 * len(JUDGED), 3.2)
    width = 0.8 / len(titles)
    names = ("copies", "follows", "sensitivity")
    for panel, split in zip(figure.subplots(1, len(JUDGED), sharey=True), JUDGED, strict=True):
        for number, title in enumerate(titles):
            kinds = judged.speech[title][split]
            values = [values_of(kinds, ASKED, measure) for measure in ("copy", "follow")]
            values.append(sensitivities(kinds))
            found = [bootstrap_interval(np.moveaxis(one, 1, 0)) for one in values]
            means = [one.mean for one in found]
            errors = [[one.mean - one.low for one in found], [one.high - one.mean for one in found]]
            places = np.arange(len(names)) + (number - (len(titles) - 1) / 2) * width
            color = COLORS[number % len(COLORS)]
            panel.bar(places, means, width, yerr=errors, label=title, color=color, ecolor="#1d2733")
        panel.set_xticks(range(len(names)), names)
        panel.set_title(split.replace("_", " "), fontsize=9)
        open_frame(panel)
    figure.axes[0].legend(fontsize=8, frameon=False)
    write_png(figure, path)


def draw_attention(judged: Judged, path: Path) -> None:
    """Lines over layers: which share of the attention of an answer lies on what."""
    figure = new_figure(6.0, 3.2)
    panel = figure.subplots()
    for number, (title, own) in enumerate(judged.attribution.items()):
        shares = np.mean(own["attention_share"], axis=0)  # [L, 4]
        layers = np.arange(1, len(shares) + 1)
        color = COLORS[number % len(COLORS)]
        for segment, style, name in (
            (bias.INSTRUCTION, "--", "instruction"),
            (bias.SPEECH, "-", "speech"),
        ):
            panel.plot(
                layers, shares[:, segment], style, marker=".", color=color, label=f"{title}, {name}"
            )
    panel.set_xticks(layers)
    panel.set_xlabel("layer")
    panel.set_ylabel("share of attention")
    panel.set_ylim(0, None)
    panel.legend(fontsize=8, frameon=False)
    open_frame(panel)
    write_png(figure, path)
