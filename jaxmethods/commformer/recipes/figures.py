"""A picture of a learned communication graph; agents are numbered from 1, as viewers do."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch

from jaxmethods.plotting import INK, new_figure, write_png

ACCENT = "#d1495b"


def draw_graph(graph: np.ndarray, preference: np.ndarray | None, path: Path) -> None:
    """Draws who listens to whom, beside the edge preferences it was hardened from.

    Args:
        graph: [N, N] 0/1, rows receive, columns send.
        preference: [N, N] softmax of the edge logits over senders; None for a fixed graph.
        path: PNG file to write.
    """
    panels = 1 if preference is None else 2
    figure = new_figure(4.9 * panels, 4.4)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _draw_nodes(axes[0], graph)
    if preference is not None:
        _draw_preference(axes[1], graph, preference)
    write_png(figure, path, bbox_inches="tight", pad_inches=0.15)


def _draw_nodes(panel: Axes, graph: np.ndarray) -> None:
    """Agents on a circle; an arrow runs from a sender to its receiver, a ring marks a self edge."""
    n_agents = len(graph)
    angles = np.pi / 2 - 2 * np.pi * np.arange(n_agents) / n_agents
    places = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    for receiver, sender in np.argwhere(graph > 0):
        if receiver == sender:
            x, y = places[receiver]
            panel.scatter(x, y, s=1300, facecolors="none", edgecolors=ACCENT, lw=2)
            continue
        arrow = FancyArrowPatch(
            tuple(places[sender]),
            tuple(places[receiver]),
            connectionstyle="arc3,rad=0.12",
            arrowstyle="-|>",
            mutation_scale=16,
            shrinkA=17,
            shrinkB=17,
            color=ACCENT,
            lw=1.6,
        )
        panel.add_patch(arrow)
    panel.scatter(*places.T, s=800, color=INK, zorder=3)
    for agent, (x, y) in enumerate(places):
        panel.text(x, y, str(agent + 1), color="white", ha="center", va="center", zorder=4)
    panel.set_title("who listens to whom (arrow: sender to receiver)", fontsize=10)
    panel.set(xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), aspect="equal")
    panel.set_axis_off()


def _draw_preference(panel: Axes, graph: np.ndarray, preference: np.ndarray) -> None:
    image = panel.imshow(preference, cmap="Blues", vmin=0.0)
    for receiver, sender in np.argwhere(graph > 0):
        panel.scatter(sender, receiver, s=60, facecolors="none", edgecolors=ACCENT, lw=2)
    ticks, names = range(len(graph)), [str(agent + 1) for agent in range(len(graph))]
    panel.set(xlabel="sender", ylabel="receiver")
    panel.set_xticks(ticks, names)
    panel.set_yticks(ticks, names)
    panel.set_title("edge preference, softmax of the logits", fontsize=10)
    panel.figure.colorbar(image, ax=panel, shrink=0.8)


def edge_preference(edges: jax.Array) -> np.ndarray:
    """[N, N]: softmax of the edge logits over senders, on the host."""
    return np.asarray(jax.nn.softmax(edges, axis=-1))
