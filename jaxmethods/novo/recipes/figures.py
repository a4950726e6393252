"""Figures of an evaluation: which heads vote, layer by layer; accuracies; margins of the votes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.ticker import MaxNLocator

from jaxmethods.plotting import new_figure, open_frame, write_png

NEITHER, LARGEST, SMALLEST = "#edf1f5", "#1f3b57", "#d98a2b"
COMPARED = {
    "accuracy": "norm voting",
    "single_head_accuracy": "single best head",
    "all_heads_accuracy": "all heads",
    "random_heads_accuracy": "random heads",
    "probe_accuracy": "linear probe",
    "likelihood_accuracy": "likelihood",
    "mean_likelihood_accuracy": "likelihood a token",
    "majority_accuracy": "majority label",
    "chance": "chance",
}


def draw(
    folder: Path,
    *,
    voters: tuple[Sequence[int], Sequence[int]],
    layers: range,
    votes: np.ndarray,
    labels: np.ndarray,
    metrics: Mapping[str, float],
    heads: int,
) -> None:
    """Writes all figures of an evaluation into a folder.

    Args:
        folder: of the figures.
        voters: numbers of the heads that vote for the largest, and for the smallest norm.
        layers: those that are shown.
        votes: [n, C] that each candidate got.
        labels: [n] int.
        metrics: accuracies by name.
        heads: H of a layer.
    """
    draw_heads(folder / "voting_heads_by_layer.png", voters, layers, heads)
    draw_accuracies(folder / "accuracies.png", metrics)
    draw_margins(folder / "margin_of_the_votes.png", votes, labels)


def draw_heads(
    path: Path, voters: tuple[Sequence[int], Sequence[int]], layers: range, heads: int
) -> None:
    """A square for every head, layers from left to right, and how many vote in each layer.

    Args:
        path: of the PNG.
        voters: numbers of the heads that vote for the largest, and for the smallest norm.
        layers: those that are shown.
        heads: H of a layer.
    """
    grid = np.zeros(len(layers) * heads, int)
    grid[list(voters[0])], grid[list(voters[1])] = 1, 2
    grid = grid.reshape(len(layers), heads)
    figure = new_figure(7.5, 4.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    colors = ListedColormap([NEITHER, LARGEST, SMALLEST])
    extent = (layers.start - 0.5, layers.stop - 0.5, heads - 0.5, -0.5)
    above.imshow(grid.T, cmap=colors, vmin=0, vmax=2, aspect="auto", extent=extent)
    above.set_ylabel("head")
    numbers = [(grid == kind).sum(1) for kind in (1, 2)]
    below.bar(layers, numbers[0], color=LARGEST, label="vote for the largest norm")
    below.bar(layers, numbers[1], bottom=numbers[0], color=SMALLEST, label="for the smallest")
    below.set_xlabel("layer")
    below.set_ylabel("voters")
    for axis in (above.yaxis, below.xaxis, below.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    below.legend(fontsize=8, frameon=False)
    write_png(figure, path)


def draw_accuracies(path: Path, metrics: Mapping[str, float]) -> None:
    """Norm voting with its confidence interval beside the baselines."""
    names = [name for name in COMPARED if name in metrics]
    figure = new_figure(6.0, 0.4 * len(names) + 1.0)
    panel = figure.subplots()
    values = [100 * metrics[name] for name in names]
    colors = [LARGEST if name == "accuracy" else "#9fb2c4" for name in names]
    panel.barh([COMPARED[name] for name in names], values, color=colors)
    interval = [100 * metrics[f"accuracy_95_{end}"] for end in ("low", "high")]
    panel.plot(interval, [0, 0], color=SMALLEST, linewidth=2.5)
    panel.invert_yaxis()
    panel.set_xlabel("accuracy (%), line: 95 % confidence interval")
    open_frame(panel)
    write_png(figure, path)


def draw_margins(path: Path, votes: np.ndarray, labels: np.ndarray) -> None:
    """By how many votes the right candidate leads the best other one (or trails it)."""
    figure = new_figure(6.0, 2.6)
    panel = figure.subplots()
    margin = margins(votes, labels)
    step = max(1, int(np.ptp(margin)) // 40)  # votes are whole numbers, and 0 a bar of its own
    edges = np.arange(margin.min() // step * step, margin.max() + step + 1, step) - 0.5
    panel.hist(margin, bins=edges, color="#9fb2c4", rwidth=0.9)
    panel.axvline(0, color=SMALLEST)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("votes of the right candidate minus those of the best other one")
    panel.set_ylabel("questions")
    open_frame(panel)
    write_png(figure, path)


def margins(votes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Votes [n, C] of the right candidates minus those of the best other one, which has 0 at least;
    [n]."""
    rows = np.arange(len(labels))
    others = votes.copy()
    others[rows, labels] = 0
    return votes[rows, labels] - others.max(1)
