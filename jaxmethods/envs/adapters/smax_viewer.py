"""Pictures of SMAX."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from jaxmethods.envs.adapters.adapter import State
from jaxmethods.envs.team.viewer import TEAM_COLORS, GridViewer

ALLY, ENEMY = TEAM_COLORS[:2]


class SmaxViewer(GridViewer):
    """Living allies are numbered discs, living enemies numbered squares; y points down."""

    def __init__(self, height: int, width: int, n_allies: int) -> None:
        super().__init__(height, width)
        self.n_allies = n_allies

    def caption(self, state: State) -> str:
        """How many units are alive on each side."""
        alive = self._units(state).unit_alive
        return f"{np.sum(alive[: self.n_allies])} against {np.sum(alive[self.n_allies :])}"

    def draw(self, axes: Axes, state: State) -> None:
        """Draws the living units where they stand."""
        units = self._units(state)
        for index in np.flatnonzero(units.unit_alive):
            x, y = units.unit_positions[index]
            enemy = bool(index >= self.n_allies)
            label = str(index - self.n_allies * enemy + 1)
            self.draw_token(axes, (y, x), 0.6, ENEMY if enemy else ALLY, label, square=enemy)

    def _units(self, state: State) -> Any:
        return state.wrapped.units.state
