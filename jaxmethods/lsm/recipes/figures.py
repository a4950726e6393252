"""Figures of speech-text models: bars with intervals, attention by layer, strengths of LoRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmethods.lsm import bias
from jaxmethods.lsm.transcripts.alignment import Aligned, cka_interval
from jaxmethods.numerics.statistics import Interval, bootstrap_interval
from jaxmethods.plotting import new_figure, open_frame, write_png

COLORS = ("#1f3b57", "#d98a2b", "#5f8f6f", "#9fb2c4", "#8c4a5c", "#5b6b7b")
INK = "#1d2733"
Bars = Mapping[str, Mapping[str, Interval]]
"""Student -> measure -> mean and interval."""


def over_clips(values: np.ndarray) -> Interval:
    """The mean of [S, N, ...] and its 95 % interval of the bootstrap over clips, which seeds share.

    It is NaN where there is no value.
    """
    return bootstrap_interval(np.moveaxis(values, 1, 0))


def as_cell(interval: Interval) -> str:
    """An interval as a cell of a table; empty where there is no value."""
    return str(interval) if np.isfinite(interval.mean) else ""


def cell(values: np.ndarray) -> str:
    """The mean of [S, N, ...] and its interval over clips as a cell of a table."""
    return as_cell(over_clips(values))


def alignment_bars(own: Aligned) -> dict[str, Interval]:
    """How alike a student's speech tokens and transcripts are, fields [S, N, ...]."""
    return {"CKA": cka_interval(own.speech, own.text), "cosine": over_clips(np.asarray(own.cosine))}


ALIGNED = (
    "CKA: unbiased, linear kernels, mean tokens of a recording and of its transcript where the "
    "language model takes them in, with the spread of half samples; cosine: that of a transcript's "
    "token with the nearest speech token, with the interval of the bootstrap over recordings."
)


def draw_bars(panels: Mapping[str, Bars], path: Path) -> None:
    """Bars with intervals, side by side for every student; a panel a title."""
    titles = list(dict.fromkeys(title for bars in panels.values() for title in bars))
    figure = new_figure(max(3.2, 0.55 * len(titles) + 2.2) * len(panels), 3.2)
    width = 0.8 / len(titles)
    several = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for panel, (name, bars) in zip(several, panels.items(), strict=True):
        measures = list(dict.fromkeys(measure for own in bars.values() for measure in own))
        for number, (title, own) in enumerate(bars.items()):
            found = [own[measure] for measure in measures]
            errors = [[one.mean - one.low for one in found], [one.high - one.mean for one in found]]
            places = np.arange(len(measures)) + (number - (len(titles) - 1) / 2) * width
            color = COLORS[number % len(COLORS)]
            panel.bar(
                places,
                [one.mean for one in found],
                width,
                yerr=np.maximum(errors, 0),
                label=title,
                color=color,
                ecolor=INK,
            )
        panel.set_xticks(range(len(measures)), measures)
        panel.set_title(name, fontsize=9)
        open_frame(panel)
    several[0].legend(fontsize=8, frameon=False)
    write_png(figure, path)


def draw_attention(attribution: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> None:
    """Lines over layers: which share of the attention of an answer lies on what.

    Args:
        attribution: student -> `attention_share` [S, N, L, 4], beside others.
        path: the PNG file.
    """
    figure = new_figure(6.0, 3.2)
    panel = figure.subplots()
    for number, (title, own) in enumerate(attribution.items()):
        shares = own["attention_share"]
        layers = np.arange(1, shares.shape[2] + 1)
        color = COLORS[number % len(COLORS)]
        for segment, style, name in (
            (bias.INSTRUCTION, "--", "instruction"),
            (bias.SPEECH, "-", "speech"),
        ):
            found = [over_clips(shares[:, :, layer - 1, segment]) for layer in layers]
            means = [one.mean for one in found]
            panel.plot(layers, means, style, marker=".", color=color, label=f"{title}, {name}")
            low, high = [one.low for one in found], [one.high for one in found]
            panel.fill_between(layers, low, high, color=color, alpha=0.15, linewidth=0)
    panel.set_xticks(layers if len(layers) < 16 else layers[::4])
    panel.set_xlabel("layer")
    panel.set_ylabel("share of attention")
    panel.set_ylim(0, None)
    panel.legend(fontsize=8, frameon=False)
    open_frame(panel)
    write_png(figure, path)


def draw_strengths(curves: Mapping[str, Sequence[tuple[float, Any]]], path: Path) -> None:
    """Lines over the strength of additions: how much is copied, how much followed.

    Args:
        curves: student -> strengths with measures and their intervals, in order.
        path: the PNG file.
    """
    figure = new_figure(5.2, 3.2)
    panel = figure.subplots()
    for number, (title, points) in enumerate(curves.items()):
        color = COLORS[number % len(COLORS)]
        strengths = [strength for strength, _ in points]
        for measure, style in (("copies", "-"), ("follows", "--")):
            found = [own[measure] for _, own in points]
            means, low, high = np.asarray(found).T
            panel.plot(strengths, means, style, marker=".", color=color, label=f"{title} {measure}")
            panel.fill_between(strengths, low, high, color=color, alpha=0.15, linewidth=0)
    panel.set_xlabel("strength of the additions at test time (lora_scale)")
    panel.set_ylabel("share of answers")
    panel.set_ylim(0, 1)
    panel.legend(fontsize=8, frameon=False)
    open_frame(panel)
    write_png(figure, path)


def attribution_rows(
    attribution: Mapping[str, Mapping[str, np.ndarray]],
) -> tuple[list[str], list[list[str]]]:
    """A table of what answers are made from, averaged over layers, with intervals over clips.

    Args:
        attribution: student -> fields of `bias.Attribution`, [S, N, ...].

    Returns:
        Head and lines.
    """
    head = ["made from", "attention: instruction", "attention: speech", "saliency ratio"]
    head += ["gradient x input: instruction", "gradient x input: speech"]
    lines = []
    for title, own in attribution.items():
        attention = np.mean(own["attention_share"], axis=2)  # [S, N, 4]
        saliency = np.mean(own["saliency"], axis=2)
        inputs = own["gradient_input_share"]
        below = saliency[..., bias.INSTRUCTION]
        ratio = saliency[..., bias.SPEECH] / np.where(below > 0, below, np.nan)
        segments = (bias.INSTRUCTION, bias.SPEECH)
        values = [attention[..., one] for one in segments]
        values += [ratio, *(inputs[..., one] for one in segments)]
        lines.append([title, *(cell(one) for one in values)])
    return head, lines
