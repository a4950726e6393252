"""Pictures of Traffic Junction."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Polygon

from jaxmethods.envs.team.traffic_junction.roads import Roads
from jaxmethods.envs.team.traffic_junction.types import State
from jaxmethods.envs.team.viewer import GridViewer, spread, team_color

VERGE = "#EEF1E6"
ROAD = "#D6D3CD"
BRAKE = "#E03131"
CRASH = "#FFD43B"


class TrafficJunctionViewer(GridViewer):
    """Cars are numbered squares with a nose; braking ones have a red rim, collisions a yellow
    star. Thin lines are the routes they still have to drive."""

    def __init__(self, roads: Roads) -> None:
        super().__init__(roads.side, roads.side)
        self.roads = roads

    def caption(self, state: State) -> str:
        """How many cars are on the road, and whether there was a collision so far."""
        cars = int(np.sum(state.alive))
        crashed = "crashed" if state.crashed else "no crash"
        return f"{cars} car{'' if cars == 1 else 's'}, {crashed}"

    def draw(self, axes: Axes, state: State) -> None:
        """Draws roads, remaining routes, collisions and cars."""
        axes.imshow(self.roads.is_road(0), cmap=ListedColormap([VERGE, ROAD]), zorder=0)
        self.draw_lines(axes, "white")
        cars = np.flatnonzero(state.alive).tolist()
        locations = np.asarray(state.location)[cars]
        for car in cars:
            ahead = self._ahead(state, car)
            axes.plot(ahead[:, 1], ahead[:, 0], color=team_color(car), alpha=0.35, zorder=2)
        cells, number = np.unique(locations, axis=0, return_counts=True)
        for row, column in cells[number > 1]:
            axes.add_patch(Polygon(_star(row, column), color=CRASH, zorder=3))
        for car, (center, radius) in zip(cars, spread(locations), strict=True):
            self._draw_car(axes, state, car, center, radius)

    def _draw_car(
        self, axes: Axes, state: State, car: int, center: tuple[float, float], radius: float
    ) -> None:
        ahead = self._ahead(state, car)
        if len(ahead) > 1:
            nose = _nose(center, ahead[1] - ahead[0], radius)
            axes.add_patch(Polygon(nose, color=team_color(car), zorder=4))
        ring = BRAKE if state.last_action[car] else None
        self.draw_token(axes, center, radius, team_color(car), str(car + 1), True, ring)

    def _ahead(self, state: State, car: int) -> np.ndarray:
        """[L, 2] cells from where the car is to the end of its route."""
        route = state.route[car]
        return self.roads.routes[route, state.route_position[car] : self.roads.lengths[route]]


def _nose(center: tuple[float, float], heading: np.ndarray, radius: float) -> np.ndarray:
    """A triangle in front of a car, [3, 2] (column, row)."""
    forward, side = heading * radius, np.array([-heading[1], heading[0]]) * radius
    tip, base = 1.35 * forward, 0.8 * forward
    return (np.array(center) + np.stack([tip, base + 0.6 * side, base - 0.6 * side]))[:, ::-1]


def _star(row: int, column: int) -> np.ndarray:
    """A star with twelve points around a cell, [24, 2] (column, row)."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    radius = np.where(np.arange(24) % 2, 0.48, 0.72)
    return np.stack([column + radius * np.cos(angle), row + radius * np.sin(angle)], axis=-1)
