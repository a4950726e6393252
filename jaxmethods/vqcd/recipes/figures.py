"""Figures of numbers: matrices of scores, final scores, owners of weights, aligned spaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.colors import ListedColormap

from jaxmethods.layout import path_name
from jaxmethods.plotting import INK, new_figure, write_png

SOFT = "#8fa3b5"
COLORS = ("#1f3b57", "#d9822b", "#4f9d69", "#b04a5a", "#7a6bb0", "#8f8f3f", "#3fa3b5", "#777777")
SHOWN = 96
"""Rows and columns of a kernel whose owners are drawn."""


def draw_matrices(matrices: Mapping[str, np.ndarray], names: Sequence[str], path: Path) -> None:
    """A heat map [I, I] a learner: rows are evaluated tasks, columns what was learned last."""
    if not matrices or all(np.isnan(one).all() for one in matrices.values()):
        return
    figure = new_figure(1.2 + (1.6 + 0.6 * len(names)) * len(matrices), 1.4 + 0.6 * len(names))
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    values = np.concatenate([one[np.isfinite(one)] for one in matrices.values()])
    low, high = min(0.0, values.min()), max(values.max(), 1.0)
    for panel, (title, scores) in zip(panels, matrices.items(), strict=True):
        image = panel.imshow(scores, vmin=low, vmax=high, cmap="Blues")
        for (row, column), value in np.ndenumerate(scores):
            if np.isfinite(value):
                dark = (value - low) / (high - low) > 0.6
                color = "white" if dark else INK
                panel.text(column, row, f"{value:.0f}", ha="center", va="center", color=color)
        panel.set_xticks(range(len(names)), names, rotation=30, ha="right")
        panel.set_yticks(range(len(names)), names)
        panel.set(title=title, xlabel="after training on")
        figure.colorbar(image, ax=panel, shrink=0.7)
    panels[0].set_ylabel("score on")
    write_png(figure, path)


def draw_final(
    names: Sequence[str],
    scores: Mapping[str, np.ndarray],
    behaviors: Mapping[str, tuple[float, float]],
    path: Path,
) -> None:
    """Bars of final scores, with lines where the data's own behavior is.

    Args:
        names: of the tasks, in the order of learning.
        scores: learner -> [seeds, I].
        behaviors: task -> scores of the lower and the upper half of the data's episodes.
        path: of the PNG.
    """
    shown = {title: each for title, each in scores.items() if np.isfinite(each).any()}
    if not shown:
        return
    figure = new_figure(2.0 + 1.5 * len(names), 3.6)
    panel = figure.subplots()
    width = 0.8 / len(shown)
    for place, (title, each) in enumerate(shown.items()):
        at = np.arange(len(names)) + (place - (len(shown) - 1) / 2) * width
        color = COLORS[place % len(COLORS)]
        panel.bar(at, each.mean(0), width * 0.92, label=title, color=color)
    for place, name in enumerate(names):
        for value, style in zip(behaviors[name], (":", "--"), strict=True):
            panel.hlines(value, place - 0.42, place + 0.42, colors="#333", linestyles=style, lw=1)
    panel.plot([], [], color="#333", ls="--", lw=1, label="upper half of the data's episodes")
    panel.plot([], [], color="#333", ls=":", lw=1, label="lower half")
    panel.set_xticks(range(len(names)), names)
    panel.set(ylabel="score after the last task", title="final performance")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    write_png(figure, path)


def draw_owners(owner: Any, names: Sequence[str], path: Path) -> None:
    """Who owns which entry of three kernels, and everybody's counts in all arrays."""
    leaves = [
        (path_name(place), np.asarray(leaf))
        for place, leaf in jax.tree_util.tree_leaves_with_path(owner)
    ]
    if not leaves:
        return
    largest = sorted(leaves, key=lambda leaf: -leaf[1].size)
    chosen = [largest[place] for place in sorted({0, len(largest) // 3, 2 * len(largest) // 3})]
    figure = new_figure(3.2 * len(chosen) + 3.0, 3.6)
    panels = figure.subplots(1, len(chosen) + 1)
    # Free weights are white.
    colors = ListedColormap(["white", *(COLORS[i % len(COLORS)] for i in range(len(names)))])
    for panel, (name, leaf) in zip(panels, chosen, strict=False):
        flat = leaf.reshape(-1, leaf.shape[-1])[:SHOWN, :SHOWN]
        style = {"cmap": colors, "vmin": -1.5, "vmax": len(names) - 0.5, "aspect": "auto"}
        panel.imshow(flat, interpolation="nearest", **style)
        panel.set_title(name.removeprefix("network/").removesuffix("/weight"), fontsize=8)
        panel.set_xticks([])
        panel.set_yticks([])
    counts = np.array([[(leaf == task).sum() for task in range(len(names))] for _, leaf in leaves])
    shares = counts / np.array([leaf.size for _, leaf in leaves])[:, None]
    for task, name in enumerate(names):
        panels[-1].plot(shares[:, task], ".", ms=4, color=COLORS[task % len(COLORS)], label=name)
    panels[-1].set(title="share in every array", xlabel="array", ylim=(0, None))
    panels[-1].legend(frameon=False, fontsize=8)
    write_png(figure, path)


def draw_spaces(
    names: Sequence[str],
    quality: Mapping[str, Mapping[str, np.ndarray]],
    differences: Mapping[str, np.ndarray],
    path: Path,
) -> None:
    """Restoring errors, codes used and distances between tasks, for states and actions.

    Args:
        names: of the tasks, in the order of learning.
        quality: task -> name of a measure -> [seeds].
        differences: "states" and "actions" -> distances between tasks.
        path: of the PNG.
    """
    figure = new_figure(9.6, 3.2)
    panels = figure.subplots(1, 3)
    at = np.arange(len(names))
    for shift, (side, color) in zip((-0.2, 0.2), (("states", INK), ("actions", SOFT)), strict=True):
        error = [quality[name][f"{side}_error"].mean() for name in names]
        panels[0].bar(at + shift, error, 0.38, color=color, label=side)
        if all(f"{side}_codes_used" in quality[name] for name in names):
            used = [100 * quality[name][f"{side}_codes_used"].mean() for name in names]
            panels[1].bar(at + shift, used, 0.38, color=color)
        panels[2].bar([side], [differences[side].mean()], color=color)
    panels[0].set(title="mean squared error, held out")
    panels[0].legend(frameon=False)
    panels[1].set(title="codes used, %")
    panels[2].set(title="distance between tasks")
    for panel in panels[:2]:
        panel.set_xticks(at, names, rotation=20)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    write_png(figure, path)
