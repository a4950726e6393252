"""What a distilled set looks like beside the data it was made of."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxmethods.obd.types import SynSet
from jaxmethods.offline_rl.types import OfflineData
from jaxmethods.plotting import INK, new_figure, write_png

SHOWN = 2000
"""Rows of the data that are drawn."""
DATA = "#b8c4cf"


def draw_set(syn: SynSet, data: OfflineData, path: Path) -> None:
    """States in the plane of the data's two largest principal components, and the actions."""
    rows = np.linspace(0, len(data.states) - 1, min(SHOWN, len(data.states))).astype(int)
    states = np.asarray(data.states[jnp.asarray(rows)])
    center = states.mean(0)
    _, _, axes = np.linalg.svd(states - center, full_matrices=False)
    figure = new_figure(9, 3.8)
    left, right = figure.subplots(1, 2)
    plane = axes[:2].T
    for values, color, size, label in (
        (states, DATA, 4, "data"),
        (np.asarray(syn.states), INK, 10, "synthetic"),
    ):
        points = (values - center) @ plane
        left.scatter(*_two_columns(points), s=size, color=color, label=label, linewidths=0)
    left.set(title="states", xlabel="first principal component", ylabel="second")
    left.legend(frameon=False)
    actions = [np.asarray(data.actions[jnp.asarray(rows)]), np.asarray(syn.actions)]
    for values, color, shift in zip(actions, (DATA, INK), (-0.18, 0.18), strict=True):
        places = np.arange(values.shape[1]) + shift
        parts = right.boxplot(
            values, positions=places, widths=0.3, patch_artist=True, sym="", manage_ticks=False
        )
        for box in parts["boxes"]:
            box.set(facecolor=color, edgecolor=color)
    right.set(title="actions", xlabel="dimension", ylabel="value")
    right.set_xticks(range(actions[0].shape[1]))
    write_png(figure, path)


def _two_columns(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The plane's coordinates; the second is 0 where states have one dimension."""
    return points[:, 0], points[:, 1] if points.shape[1] > 1 else np.zeros(len(points))
