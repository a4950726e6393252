"""Pictures of grid environments, drawn without a display.

Figures are made through matplotlib's object interface, never pyplot, so that no window opens
and no figure stays in memory. Files are written under another name and renamed when complete.
"""

from __future__ import annotations

import abc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import matplotlib.image
import numpy as np
from jumanji.viewer import Viewer
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle

from jaxmethods.plotting import new_figure

PAPER = "#FBFAF7"
LINES = "#DDD9D0"
INK = "#2E3440"
DONE = "#2F9E44"
TEAM_COLORS = (
    "#0072B2",
    "#D55E00",
    "#8E44AD",
    "#009E73",
    "#C2255C",
    "#56A3D9",
    "#A0522D",
    "#5F6B7A",
    "#B8860B",
    "#1B4F72",
)
MIN_FRAME_INCHES = 3.2
CELL_INCHES = 0.3
FRAME_DPI = 120
MAX_STRIP_FRAMES = 12


class GridViewer(Viewer[Any]):
    """Draws states of a height x width grid; subclasses say what stands on it."""

    def __init__(self, height: int, width: int) -> None:
        self.height = height
        self.width = width

    @abc.abstractmethod
    def draw(self, axes: Axes, state: Any) -> None:
        """Draws what stands on the board; `state` holds numpy arrays and no key."""

    @abc.abstractmethod
    def caption(self, state: Any) -> str:
        """What is written over the board, beside the step."""

    def render(self, state: Any, save_path: str | None = None) -> np.ndarray:
        """Draws one state: RGBA array [H, W, 4] uint8, also written to `save_path` as PNG."""
        figure = self._figure(1, 1)
        self._draw_frame(figure.subplots(), host_state(state))
        return _pixels(figure, save_path)

    def filmstrip(
        self,
        states: Any,
        save_path: str | None = None,
        max_frames: int = MAX_STRIP_FRAMES,
    ) -> np.ndarray:
        """Draws an episode in one picture, row by row.

        Args:
            states: a list of states or one state with a leading time axis.
            save_path: PNG file to write as well.
            max_frames: of a longer episode that many frames are shown, evenly spaced, the first
                and the last among them.

        Returns:
            RGBA array [H, W, 4] uint8.
        """
        frames = frames_of(states)
        shown, rows, columns = strip_layout(len(frames), max_frames)
        figure = self._figure(rows, columns)
        axes = np.ravel(figure.subplots(rows, columns))
        for panel in axes[len(shown) :]:
            panel.set_axis_off()
        for panel, index in zip(axes, shown, strict=False):
            self._draw_frame(panel, frames[index])
        return _pixels(figure, save_path)

    def animate(
        self,
        states: Any,
        interval: int = 300,
        save_path: str | None = None,
    ) -> FuncAnimation:
        """Animates an episode.

        Args:
            states: a list of states or one state with a leading time axis.
            interval: milliseconds between frames.
            save_path: GIF file to write.

        Returns:
            The animation, to be shown in a notebook or saved elsewhere.
        """
        frames = frames_of(states)
        figure = self._figure(1, 1)
        axes = figure.subplots()

        def show(index: int) -> list[Axes]:
            axes.clear()
            self._draw_frame(axes, frames[index])
            return [axes]

        show(0)
        figure.canvas.draw()
        figure.set_layout_engine("none")  # Laid out once: every frame has the same parts.
        # A no-op first draw: by default the first frame would be drawn twice.
        film = FuncAnimation(
            figure, show, frames=len(frames), interval=interval, init_func=lambda: [axes]
        )
        if save_path is not None:
            writer = PillowWriter(fps=1000 / interval)  # pyright: ignore[reportArgumentType]
            write_file(
                save_path, ".gif", lambda path: film.save(path, writer=writer, dpi=FRAME_DPI)
            )
        return film

    def close(self) -> None:
        """Nothing is held open."""

    @property
    def _inches(self) -> float:
        """Width of one frame; cells of a large grid stay readable."""
        return max(MIN_FRAME_INCHES, CELL_INCHES * max(self.height, self.width))

    def _figure(self, rows: int, columns: int) -> Figure:
        height = self._inches * self.height / self.width + 0.3
        size = (self._inches * columns, height * rows)
        figure = new_figure(*size, dpi=FRAME_DPI, facecolor="white")
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.06)
        return figure

    def _draw_frame(self, axes: Axes, state: Any) -> None:
        axes.set_xlim(-0.5, self.width - 0.5)
        axes.set_ylim(self.height - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_facecolor(PAPER)
        for spine in axes.spines.values():
            spine.set(color=INK, linewidth=1.2)
        axes.set_title(f"step {int(state.step_count)}", loc="left", fontsize=10, color=INK)
        axes.set_title(self.caption(state), loc="right", fontsize=10, color=INK)
        self.draw(axes, state)

    def draw_lines(self, axes: Axes, color: str = LINES) -> None:
        """Thin lines between the cells."""
        bounds = {"color": color, "linewidth": 0.7, "zorder": 1}
        axes.vlines(np.arange(1, self.width) - 0.5, -0.5, self.height - 0.5, **bounds)
        axes.hlines(np.arange(1, self.height) - 0.5, -0.5, self.width - 0.5, **bounds)

    def draw_window(self, axes: Axes, position: np.ndarray, vision: int, color: str) -> None:
        """Shades the part of an agent's window that lies on the grid.

        Args:
            axes: what is drawn on.
            position: [2] row and column of the agent.
            vision: cells seen to each side.
            color: of the agent.
        """
        top, left = np.maximum(position - vision, 0) - 0.5
        bottom, right = np.minimum(position + vision, [self.height - 1, self.width - 1]) + 0.5
        corner, size = (left, top), (right - left, bottom - top)
        edge = (*to_rgb(color), 0.55)
        style = {"linewidth": 0.9, "linestyle": (0, (3, 2)), "zorder": 2}
        axes.add_patch(
            Rectangle(corner, *size, facecolor=(*to_rgb(color), 0.09), edgecolor=edge, **style)
        )

    def draw_token(
        self,
        axes: Axes,
        center: tuple[float, float],
        radius: float,
        color: str,
        label: str,
        square: bool = False,
        ring: str | None = None,
    ) -> None:
        """A disc or rounded square with a label in it.

        Args:
            axes: what is drawn on.
            center: row and column, in cells.
            radius: in cells.
            color: that of the disc.
            label: a letter or two.
            square: draw a square, not a disc.
            ring: color of its rim; None: a thin white one.
        """
        row, column = center
        rim = {"facecolor": color, "edgecolor": ring or "white", "zorder": 5}
        points = 72 * radius * self._inches / max(self.height, self.width)
        rim["linewidth"] = (0.16 if ring else 0.07) * points
        if square:
            side = 1.7 * radius
            corner = (column - side / 2, row - side / 2)
            rounding = f"round,pad=0,rounding_size={0.3 * radius}"
            token = FancyBboxPatch(corner, side, side, boxstyle=rounding, **rim)
        else:
            token = Circle((column, row), radius, **rim)
        axes.add_patch(token)
        self._write_label(axes, column, row, label, size=1.05 * points)

    def _write_label(self, axes: Axes, column: float, row: float, label: str, size: float) -> None:
        if size < 3.5:
            return
        style = {"color": "white", "fontweight": "bold", "zorder": 6}
        axes.text(column, row, label, ha="center", va="center_baseline", fontsize=size, **style)


def team_color(index: int) -> str:
    """A color for the agent of this number; they repeat after ten."""
    return TEAM_COLORS[index % len(TEAM_COLORS)]


def spread(positions: np.ndarray) -> Iterator[tuple[tuple[float, float], float]]:
    """Yields (row, column) and radius of each agent so that those in one cell stay apart.

    Args:
        positions: [N, 2] cells.
    """
    cells = [tuple(position) for position in positions.tolist()]
    for index, cell in enumerate(cells):
        together = cells.count(cell)
        if together == 1:
            yield (float(cell[0]), float(cell[1])), 0.32
            continue
        place = cells[:index].count(cell)
        angle = 2 * np.pi * place / together - (np.pi / 2 if together != 2 else np.pi)
        # Discs of radius r around a circle of radius q touch when r = q sin(pi / together).
        distance = 0.23 if together == 2 else min(0.22 + 0.015 * together, 0.34)
        radius = min(0.21, 0.93 * distance * np.sin(np.pi / together))
        yield (cell[0] + distance * np.sin(angle), cell[1] + distance * np.cos(angle)), radius


def _pixels(figure: Figure, save_path: str | None) -> np.ndarray:
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba()).copy()
    if save_path is not None:
        write_picture(save_path, pixels)
    return pixels


def write_picture(save_path: str, pixels: np.ndarray) -> None:
    """Writes RGBA [H, W, 4] uint8 as PNG."""
    write_file(save_path, ".png", lambda path: matplotlib.image.imsave(path, pixels))


def write_file(save_path: str, suffix: str, save: Callable[[str], Any]) -> None:
    """Calls `save` with a temporary name beside `save_path`, then renames."""
    path = Path(save_path)
    if path.suffix.lower() != suffix:
        raise ValueError(f"save_path must end in {suffix}, got {str(save_path)!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{suffix}")
    try:
        save(str(partial))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def strip_layout(length: int, max_frames: int) -> tuple[np.ndarray, int, int]:
    """Which of `length` frames a filmstrip shows, in how many rows and columns."""
    shown = np.unique(np.linspace(0, length - 1, max_frames).round().astype(int))
    columns = min(len(shown), 4 if len(shown) > 5 else 5)
    return shown, -(-len(shown) // columns), columns


def host_state(state: Any) -> Any:
    """The state as numpy arrays, with None for typed keys."""
    return jax.tree.map(lambda leaf: None if _is_key(leaf) else np.asarray(leaf), state)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def frames_of(states: Any) -> list[Any]:
    """One host state a frame; a step that a recording repeats at its end is shown once."""
    if isinstance(states, list | tuple) and not hasattr(states, "_fields"):
        frames = [host_state(state) for state in states]
    else:
        steps = host_state(states)
        frames = [
            jax.tree.map(lambda leaf, step=step: leaf[step], steps)
            for step in range(len(steps.step_count))
        ]
    if not frames:
        raise ValueError("states must hold at least one state, got none")
    return [
        frame
        for before, frame in zip([None, *frames], frames, strict=False)
        if before is None or before.step_count != frame.step_count
    ]
