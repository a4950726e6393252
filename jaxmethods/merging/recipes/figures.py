"""Pictures of a comparison: the table in color, representation bias by layer, routing weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxmethods.plotting import new_figure, open_frame, write_png

BIAS = {
    "task_arithmetic": ("#8a94a0", "-", "o"),
    "surgery": ("#d1801f", "--", "s"),
    "surgery_v2": ("#1f3b57", "-", "D"),
}
"""Method -> color, line and marker of the bias plot."""


def draw(content: Mapping[str, Any], titles: Mapping[str, str], folder: Path) -> None:
    """Writes accuracies.png, representation_bias.png and routing_weights.png.

    Args:
        content: see `table.as_dict`; means over seeds are drawn.
        titles: method -> what it is called, in the order of rows.
    """
    write_png(_accuracies(content, titles), folder / "accuracies.png", dpi=120)
    write_png(_bias(content, titles), folder / "representation_bias.png", dpi=120)
    write_png(_routing(content, titles), folder / "routing_weights.png", dpi=120)


def _accuracies(content: Mapping[str, Any], titles: Mapping[str, str]) -> Figure:
    rows = np.array([np.mean(content["accuracy"][name], 0) for name in titles])
    values = 100 * np.concatenate([rows, rows.mean(1, keepdims=True)], 1)
    names = [*content["tasks"], "mean"]
    figure = new_figure(2.6 + 0.95 * len(names), 1.2 + 0.36 * len(values))
    panel = figure.subplots()
    # Each column has its own scale: what matters is the order of methods on a task.
    low, high = values.min(0), values.max(0)
    panel.imshow((values - low) / np.maximum(high - low, 1e-9), cmap="Blues", vmin=-0.1, vmax=1.4)
    panel.set_aspect("auto")
    for (row, column), value in np.ndenumerate(values):
        weight = "bold" if column == len(names) - 1 else None
        panel.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=9, weight=weight)
    panel.axvline(len(names) - 1.5, color="white", linewidth=4)
    panel.set_xticks(range(len(names)), [n.replace("_", "\n") for n in names], fontsize=9)
    panel.set_yticks(range(len(values)), list(titles.values()), fontsize=9)
    panel.tick_params(length=0, top=True, bottom=False, labeltop=True, labelbottom=False)
    panel.spines[:].set_visible(False)
    seeds = len(content["seeds"])
    panel.set_xlabel(f"test accuracy in %, mean over {seeds} seed{'s' * (seeds > 1)}", fontsize=9)
    return figure


def _bias(content: Mapping[str, Any], titles: Mapping[str, str]) -> Figure:
    """One panel a task, and all tasks together: mean |merged - expert| by layer."""
    tasks = content["tasks"]
    count = len(tasks) + 1
    columns = min(count, 4 if count % 3 == 1 else 3)  # few empty places
    lines = -(-count // columns)
    figure = new_figure(3.4 * columns, 2.5 * lines + 0.5)
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True).ravel()
    names = [*tasks, "mean over tasks"]
    for place, (panel, name) in enumerate(zip(panels, names, strict=False)):
        for method, (color, line, marker) in BIAS.items():
            of_tasks = np.mean(content["distance"][method], 0)  # [T, N + 1]
            values = of_tasks.mean(0) if place == len(tasks) else of_tasks[place]
            panel.plot(values, line, color=color, marker=marker, markersize=4, label=titles[method])
        blocks = len(values) - 1
        panel.set_xticks(range(blocks + 1), [*map(str, range(1, blocks + 1)), "feature"])
        panel.set_title(name.replace("_", " "), fontsize=10, loc="left")
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.25)
        panel.tick_params(labelsize=8, labelbottom=True)
        open_frame(panel)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    figure.supxlabel("after block", fontsize=9)
    figure.supylabel("mean absolute distance from the expert", fontsize=9)
    return figure


def _routing(content: Mapping[str, Any], titles: Mapping[str, str]) -> Figure:
    """One line of panels a routed method, one panel a block: images' task against expert."""
    tasks, routing = content["tasks"], content["routing"]
    names = [name for name in titles if name in routing]
    means = {name: np.mean(routing[name], 0)[0] for name in names}  # [N, T, T]
    blocks = len(next(iter(means.values())))
    size = 0.36 * len(tasks)
    figure = new_figure(1.6 + (size + 0.25) * blocks, 1.7 + (size + 0.45) * len(means))
    panels = figure.subplots(len(means), blocks, squeeze=False, sharex=True, sharey=True)
    largest = max(np.abs(value).max() for value in means.values())
    image = None
    for line, (name, value) in zip(panels, means.items(), strict=True):
        for block, panel in enumerate(line):
            image = panel.imshow(value[block], cmap="RdBu_r", vmin=-largest, vmax=largest)
            panel.set_title(f"{titles[name]}, block {block + 1}", fontsize=8)
            panel.set_xticks(range(len(tasks)), tasks, rotation=90, fontsize=7)
            panel.set_yticks(range(len(tasks)), tasks, fontsize=7)
            panel.tick_params(length=0)
    assert image is not None
    figure.colorbar(image, ax=panels, shrink=0.7, label="mean routing weight")
    figure.supxlabel("task vector of", fontsize=9)
    figure.supylabel("images of", fontsize=9)
    return figure
