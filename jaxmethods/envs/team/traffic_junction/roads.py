"""Roads, cell classes and routes of Traffic Junction, computed once in numpy.

Cars keep to the right. `easy` is a crossing of two one-lane roads, `medium` of two two-lane
roads, `hard` has two two-lane roads in each direction and so four junctions. A route begins at
an entry and is driven by a list of turns, one a junction: a right turn leaves the junction at
once, a left turn goes one cell further first.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np

DOWN, RIGHT, UP, LEFT = (1, 0), (0, 1), (-1, 0), (0, -1)
STRAIGHT, TURN_RIGHT, TURN_LEFT = "straight", "right", "left"
TURNS = (STRAIGHT, TURN_RIGHT, TURN_LEFT)

Cell = tuple[int, int]


@dataclass(frozen=True)
class Roads:
    """The map of one difficulty.

    Args:
        difficulty: "easy", "medium" or "hard".
        dim: size; the grid's side is dim + 1 for easy, dim otherwise.
    """

    difficulty: str
    dim: int

    @property
    def side(self) -> int:
        """Cells in a row (and in a column) of the grid; easy grids need a middle."""
        return self.dim + (self.difficulty == "easy")

    @property
    def bands(self) -> list[tuple[int, int]]:
        """First row of each horizontal road and the one after it; vertical roads are alike."""
        middle, third = self.side // 2, self.side // 3
        return {
            "easy": [(middle, middle + 1)],
            "medium": [(middle - 1, middle + 1)],
            "hard": [(third - 2, third), (2 * third, 2 * third + 2)],
        }[self.difficulty]

    @cached_property
    def number(self) -> np.ndarray:
        """[side, side] int32 number of each road cell, -1 off the road.

        Horizontal roads first, each row-major; vertical roads overwrite the crossings.
        """
        number = np.full((self.side, self.side), -1, np.int32)
        rows = [number[first:end] for first, end in self.bands]
        columns = [number[:, first:end] for first, end in self.bands]
        begin = 0
        for road in rows + columns:
            road[:] = np.arange(begin, begin + road.size).reshape(road.shape)
            begin += road.size
        return number

    @property
    def outside_class(self) -> int:
        """Class of cells off the road: BASE = (1, 2, 4) (2 dim) for (easy, medium, hard).

        In easy grids the road numbers run to BASE + 1, so one road cell shares this class, as
        in the published environment.
        """
        return {"easy": 1, "medium": 2, "hard": 4}[self.difficulty] * 2 * self.dim

    @property
    def car_class(self) -> int:
        """Channel that counts cars; there are car_class + 1 channels."""
        return self.outside_class + 2

    def classes(self, padding: int) -> np.ndarray:
        """[side + 2 padding, side + 2 padding] int32: road number or `outside_class`."""
        classes = np.where(self.number < 0, self.outside_class, self.number)
        return np.pad(classes, padding, constant_values=self.outside_class)

    def is_road(self, padding: int) -> np.ndarray:
        """[side + 2 padding, side + 2 padding] bool."""
        return np.pad(self.number >= 0, padding)

    @property
    def entries(self) -> list[tuple[Cell, Cell]]:
        """Cell and heading of every entry, in the order in which cars enter."""
        last, middle, third = self.side - 1, self.side // 2, self.side // 3
        if self.difficulty == "easy":
            return [((0, middle), DOWN), ((middle, 0), RIGHT)]
        if self.difficulty == "medium":
            return [
                ((0, middle - 1), DOWN),
                ((last, middle), UP),
                ((middle, 0), RIGHT),
                ((middle - 1, last), LEFT),
            ]
        return [
            ((0, third - 2), DOWN),
            ((0, 2 * third), DOWN),
            ((third - 1, 0), RIGHT),
            ((2 * third + 1, 0), RIGHT),
            ((last, third - 1), UP),
            ((last, 2 * third + 1), UP),
            ((third - 2, last), LEFT),
            ((2 * third, last), LEFT),
        ]

    @cached_property
    def routes_by_entry(self) -> list[list[list[Cell]]]:
        """The routes of each entry as lists of cells, in the order of their turns."""
        junctions = {"easy": 0, "medium": 1, "hard": 2}[self.difficulty]
        by_entry = []
        for entry, heading in self.entries:
            driven = (
                tuple(self._drive(entry, heading, list(turns)))
                for turns in itertools.product(TURNS, repeat=junctions)
            )
            # Turns after the last junction on the way change nothing: one route for all.
            by_entry.append([list(route) for route in dict.fromkeys(driven)])
        return by_entry

    @property
    def routes_per_entry(self) -> int:
        """Routes that begin at each entry: 1, 3 or 7."""
        return len(self.routes_by_entry[0])

    @cached_property
    def lengths(self) -> np.ndarray:
        """[npath] int32 cells of each route."""
        return np.array([len(route) for entry in self.routes_by_entry for route in entry], np.int32)

    @cached_property
    def routes(self) -> np.ndarray:
        """[npath, longest, 2] int32 cells of each route, entry after entry, padded with -1."""
        table = np.full((len(self.lengths), self.lengths.max(), 2), -1, np.int32)
        for row, route in zip(table, itertools.chain(*self.routes_by_entry), strict=True):
            row[: len(route)] = route
        return table

    def _drive(self, cell: Cell, heading: Cell, turns: list[str]) -> list[Cell]:
        """Cells from an entry to the edge, turning at junctions while there are turns."""
        route, turn_in = [cell], -1
        while True:
            following = _step(cell, heading)
            if not all(0 <= part < self.side for part in following):
                return route
            entering = self._in_junction(following) and not self._in_junction(cell)
            cell = following
            route.append(cell)
            turn_in -= 1
            if entering and turns:
                turn = turns.pop(0)
                heading = _right_of(heading) if turn == TURN_RIGHT else heading
                turn_in = 1 if turn == TURN_LEFT else -1
            elif turn_in == 0:
                heading = _left_of(heading)

    def _in_junction(self, cell: Cell) -> bool:
        return all(any(first <= part < end for first, end in self.bands) for part in cell)


def _step(cell: Cell, heading: Cell) -> Cell:
    return cell[0] + heading[0], cell[1] + heading[1]


def _right_of(heading: Cell) -> Cell:
    """Rows grow downwards: right of down is left (west)."""
    return heading[1], -heading[0]


def _left_of(heading: Cell) -> Cell:
    return -heading[1], heading[0]
