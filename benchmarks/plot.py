"""Figures: environments, CommFormer, hypergradients, norm voting and language models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from jaxmethods.plotting import new_figure, open_frame, write_png

Rows = Sequence[Mapping[str, Any]]

OTHERS = {
    "torch": ("ours / PyTorch, same run", "#e07a5f"),
    "reference": ("ours / published code, 1 thread", "#1f3b57"),
}
LABELS = {
    "commformer/act": "acting",
    "commformer/epoch": "one PPO epoch",
    "commformer/loop": "whole loop\n3 agents, 5 x 5",
    "commformer/loop_10_agents": "whole loop\n10 agents, 20 x 20",
    "commformer/loop_many": "whole loop\n2048 environments",
}


MERGING = {
    "merging/layer_sample_forward": "routed MLP, forward",
    "merging/layer_sample_gradient": "routed MLP, gradient",
    "merging/layer_batch_forward": "one routing a batch, forward",
    "merging/layer_batch_gradient": "one routing a batch, gradient",
    "merging/tower_sample": "routed tower",
    "merging/tower_batch": "routed tower,\none routing a batch",
    "merging/adapt_sample": "adaptation step",
    "merging/adapt_batch": "adaptation step,\none routing a batch",
    "merging/surgery_loop": "Surgery, 1000 steps",
    "merging/surgery_v2": "SurgeryV2 step",
    "merging/average": "averaging",
    "merging/task_arithmetic": "task arithmetic",
    "merging/ties": "global TIES",
}


def draw(rows: Rows, environment: Mapping[str, Any], path: Path) -> None:
    """Draws the panels for which there are rows, as a PNG."""
    swept = [row for row in rows if row["name"].startswith("environments/")]
    compared = [row for row in rows if row["name"] in LABELS]
    compared = [row for row in compared if any(row[f"ratio_{other}"] for other in OTHERS)]
    unrolled = [row for row in rows if row["name"] == "bilevel/steps"]
    panels = [
        (draw_rates, swept),
        (draw_ratios, compared),
        (draw_hypergradient_times, unrolled),
        (draw_hypergradient_memory, unrolled),
        (draw_scoring, [row for row in rows if row["name"] == "novo/score"]),
        (draw_decoders, [row for row in rows if row["name"].startswith("decoder/")]),
        (draw_merging_ratios, [row for row in rows if row["name"] in MERGING]),
        (draw_strategies, [row for row in rows if row["name"] == "merging/strategies"]),
    ]
    panels = [(draw_panel, own) for draw_panel, own in panels if own]
    if not panels:
        return
    figure = new_figure(6.8 * len(panels), 5.2)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (draw_panel, own) in zip(axes, panels, strict=True):
        draw_panel(axis, own)
        open_frame(axis)
        axis.set_axisbelow(True)
    cores = f"{environment['cores']} cores" if environment["cores"] > 1 else "1 core"
    title = f"jax {environment['jax']}, {environment['devices']}, {cores}"
    figure.suptitle(title, fontsize=10, color="#555555")
    write_png(figure, path, dpi=130)


def draw_rates(axis: Axes, rows: Rows) -> None:
    """Steps per second against parallel environments: ours, and dashed PyTorch where it exists."""
    colors = matplotlib.color_sequences["tab10"]
    names = list(dict.fromkeys(row["name"] for row in rows))
    for index, name in enumerate(names):
        color = colors[index % len(colors)]
        own = [row for row in rows if row["name"] == name]
        sizes = [row["sizes"]["environments"] for row in own]
        label = name.split("/")[1].replace("_", " ")
        axis.loglog(sizes, [row["rate"] for row in own], "o-", ms=4, color=color, label=label)
        if own[0]["ratio_torch"]:
            rates = [row["rate"] / row["ratio_torch"] for row in own]
            axis.loglog(sizes, rates, "s--", ms=3.5, lw=1.2, color=color, label=f"{label}, PyTorch")
        if own[0]["reference"]:
            axis.axhline(own[0]["reference"]["rate"], color=color, linestyle=":", linewidth=1.2)
    axis.set(xlabel="environments in parallel", ylabel="environment steps per second")
    axis.set_title("Environments", loc="left", fontweight="bold")
    axis.grid(alpha=0.25)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13), "ncols": 3}
    dotted = "dotted: published code, one process"
    axis.legend(title=dotted, frameon=False, fontsize=8, title_fontsize=8, **below)


def draw_ratios(
    axis: Axes,
    rows: Rows,
    labels: Mapping[str, str] = LABELS,
    title: str = "CommFormer on Predator-Prey",
) -> None:
    """Horizontal bars of how many times faster ours is, on a logarithmic axis from 1."""
    width = 0.36
    places = [len(rows) - 1 - index for index in range(len(rows))]
    for offset, (other, (label, color)) in zip(
        (-width / 2, width / 2), OTHERS.items(), strict=True
    ):
        bars = [(y, row[f"ratio_{other}"]) for y, row in zip(places, rows, strict=True)]
        bars = [(y + offset, ratio) for y, ratio in bars if ratio]
        heights, ratios = [y for y, _ in bars], [ratio for _, ratio in bars]
        drawn = axis.barh(heights, ratios, width * 0.92, color=color, label=label)
        texts = [f"{ratio:.1f}x" if ratio < 100 else f"{ratio:,.0f}x" for ratio in ratios]
        axis.bar_label(drawn, texts, padding=3, fontsize=9)
    every = [row[f"ratio_{other}"] for row in rows for other in OTHERS if row[f"ratio_{other}"]]
    axis.set_xscale("log")
    axis.set_xlim(min(0.9, 0.8 * min(every)), 1.8 * max(every))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}x"))
    wide = max(every) > 500 * min(every)
    axis.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.axvline(1.0, color="#555555", linewidth=1, zorder=0.5)
    axis.set_yticks(places, [labels[row["name"]] for row in rows])
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel("times faster")
    axis.set_title(title, loc="left", fontweight="bold")
    axis.grid(alpha=0.25, axis="x")
    handles, names = axis.get_legend_handles_labels()
    below = {"loc": "upper center", "bbox_to_anchor": (0.4, -0.13), "ncols": 2}
    axis.legend(handles[::-1], names[::-1], frameon=False, fontsize=8, **below)


def draw_merging_ratios(axis: Axes, rows: Rows) -> None:
    """How many times faster merging is, ViT-B/32 and eight experts."""
    draw_ratios(axis, rows, MERGING, "Merging, ViT-B/32, 8 experts, batch 16")


def draw_strategies(axis: Axes, rows: Rows) -> None:
    """Milliseconds of one routed MLP against the batch: full lines 50 tokens, dashed one token."""
    colors = matplotlib.color_sequences["tab10"]
    for index, name in enumerate(dict.fromkeys(row["sizes"]["strategy"] for row in rows)):
        for tokens, style in ((50, "o-"), (1, "s--")):
            own = [row for row in rows if row["sizes"]["strategy"] == name]
            own = [row for row in own if row["sizes"]["tokens"] == tokens]
            batches = [row["sizes"]["batch"] for row in own]
            times = [1e3 * row["ours"]["median"] for row in own]
            label = name if tokens == 50 else None
            axis.loglog(batches, times, style, ms=4, color=colors[index], label=label)
    axis.set(xlabel="images in the batch", ylabel="milliseconds")
    axis.set_title("Where each way of merging wins", loc="left", fontweight="bold")
    axis.grid(alpha=0.25)
    title = "full: 50 tokens, dashed: 1 token; once: one routing for all"
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13), "ncols": 4}
    axis.legend(title=title, frameon=False, fontsize=8, title_fontsize=8, **below)


def draw_hypergradient_times(axis: Axes, rows: Rows) -> None:
    """Seconds of a hypergradient against the inner steps, one line a mode."""
    _draw_modes(axis, [(row, row["ours"]["median"]) for row in rows])
    axis.set(xlabel="inner steps", ylabel="seconds")
    axis.set_title("Hypergradients: time", loc="left", fontweight="bold")


def draw_hypergradient_memory(axis: Axes, rows: Rows) -> None:
    """Megabytes of temporaries against the inner steps, one line a mode."""
    _draw_modes(axis, [(row, row["ours"]["temporary_bytes"] / 1e6) for row in rows])
    axis.set(xlabel="inner steps", ylabel="temporaries, MB")
    axis.set_title("Hypergradients: memory", loc="left", fontweight="bold")


def draw_scoring(axis: Axes, rows: Rows) -> None:
    """Candidates per second of every way to score them, ours and others'."""
    names = {
        "tree": "all prefixes shared",
        "packed": "questions shared",
        "naive": "batches of whole sequences",
        "one": "one at a time",
    }
    bars = [(names[row["sizes"]["mode"]], row["rate"], "#81b29a") for row in rows]
    first = rows[0]
    for other, label in (("torch", "PyTorch, one at a time"), ("reference", "published code")):
        if first[f"ratio_{other}"]:
            bars.append((label, first["rate"] / first[f"ratio_{other}"], OTHERS[other][1]))
    labels, rates, colors = zip(*bars, strict=True)
    places = range(len(bars) - 1, -1, -1)
    drawn = axis.barh(places, rates, 0.7, color=colors)
    axis.bar_label(drawn, [f"{rate:.3g}" for rate in rates], padding=3, fontsize=9)
    axis.set_yticks(places, labels)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel("candidates per second")
    axis.set_title("NoVo: questions like TruthfulQA's", loc="left", fontweight="bold")
    axis.grid(alpha=0.25, axis="x")


def draw_decoders(axis: Axes, rows: Rows) -> None:
    """How many times faster than `transformers`, a bar each for prefill and decoding."""
    rows = [row for row in rows if row["ratio_torch"]]
    labels = [
        f"{row['sizes']['family']}, {row['name'].split('/')[1]}, batch {row['sizes']['batch']}"
        for row in rows
    ]
    places, ratios = range(len(rows) - 1, -1, -1), [row["ratio_torch"] for row in rows]
    drawn = axis.barh(places, ratios, 0.7, color=OTHERS["torch"][1])
    texts = [f"{row['rate']:,.0f} tokens/s" for row in rows]
    axis.bar_label(drawn, texts, padding=3, fontsize=9)
    axis.margins(x=0.25)
    axis.axvline(1.0, color="#555555", linewidth=1)
    axis.set_yticks(places, labels)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel("times faster than transformers, same run")
    axis.set_title("Language models", loc="left", fontweight="bold")
    axis.grid(alpha=0.25, axis="x")


def _draw_modes(axis: Axes, values: Sequence[tuple[Mapping[str, Any], float]]) -> None:
    # Modes that need the same would hide each other: markers differ, lines are broken.
    styles = ("o-", "s--", "^-", "D:", "v-.")
    modes = list(dict.fromkeys(row["sizes"]["mode"] for row, _ in values))
    for index, mode in enumerate(modes):
        own = [(row["sizes"]["steps"], y) for row, y in values if row["sizes"]["mode"] == mode]
        steps, heights = zip(*own, strict=True)
        axis.loglog(steps, heights, styles[index % len(styles)], ms=5, label=mode)
    steps = sorted({row["sizes"]["steps"] for row, _ in values})
    axis.set_xticks(steps, [str(number) for number in steps])
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for ticks in (axis.xaxis, axis.yaxis):
        ticks.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.25)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13), "ncols": 3}
    axis.legend(frameon=False, fontsize=8, **below)
