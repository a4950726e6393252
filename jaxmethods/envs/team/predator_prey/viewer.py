"""Pictures of Predator-Prey."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, RegularPolygon

from jaxmethods.envs.team.predator_prey.types import State
from jaxmethods.envs.team.viewer import DONE, GridViewer, spread, team_color

PREY_FILL = "#FFE08A"
PREY_EDGE = "#E0A100"


class PredatorPreyViewer(GridViewer):
    """Predators are numbered discs over their shaded windows; those that reached prey have a
    green rim. Prey is a yellow tile under whoever stands on it."""

    def __init__(self, dim: int, vision: int) -> None:
        super().__init__(dim, dim)
        self.vision = vision

    def caption(self, state: State) -> str:
        """How many predators have reached prey."""
        return f"{int(np.sum(state.reached))} of {len(state.reached)} reached"

    def draw(self, axes: Axes, state: State) -> None:
        """Draws windows, prey and predators."""
        self.draw_lines(axes)
        for index, position in enumerate(np.asarray(state.predators)):
            self.draw_window(axes, position, self.vision, team_color(index))
        for position in np.asarray(state.prey):
            draw_prey(axes, position)
        for index, (center, radius) in enumerate(spread(np.asarray(state.predators))):
            ring = DONE if state.reached[index] else None
            self.draw_token(axes, center, radius, team_color(index), str(index + 1), ring=ring)


def draw_prey(axes: Axes, position: np.ndarray) -> None:
    """A tile that fills the cell, so that it shows around the agents on it."""
    row, column = position
    rounding = "round,pad=0,rounding_size=0.16"
    style = {"facecolor": PREY_FILL, "edgecolor": PREY_EDGE, "linewidth": 1.6, "zorder": 3}
    corner = (column - 0.44, row - 0.44)
    axes.add_patch(FancyBboxPatch(corner, 0.88, 0.88, boxstyle=rounding, **style))
    axes.add_patch(RegularPolygon((column, row), 4, radius=0.2, color=PREY_EDGE, zorder=4))
