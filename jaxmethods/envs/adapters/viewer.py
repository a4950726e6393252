"""Pictures of adapted environments, drawn by the viewers that come with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jumanji.viewer import Viewer
from matplotlib.animation import FuncAnimation, PillowWriter

from jaxmethods.envs.team.viewer import (
    MAX_STRIP_FRAMES,
    frames_of,
    host_state,
    strip_layout,
    write_file,
    write_picture,
)


class AdaptedViewer(Viewer[Any]):
    """Hands the wrapped state of an adapted one to a jumanji viewer.

    Args:
        viewer: built with render_mode "rgb_array".
        drawn: from a wrapped state to what that viewer draws.
    """

    def __init__(self, viewer: Viewer, drawn: Callable[[Any], Any]) -> None:
        self._viewer = viewer
        self._drawn = drawn

    def render(self, state: Any, save_path: str | None = None) -> np.ndarray:
        """Draws one state: RGBA array [H, W, 4] uint8, also written to `save_path` as PNG."""
        pixels = self._picture(host_state(state))
        if save_path is not None:
            write_picture(save_path, pixels)
        return pixels

    def filmstrip(
        self,
        states: Any,
        save_path: str | None = None,
        max_frames: int = MAX_STRIP_FRAMES,
    ) -> np.ndarray:
        """Draws an episode in one picture, row by row: see `GridViewer.filmstrip`."""
        frames = frames_of(states)
        shown, rows, columns = strip_layout(len(frames), max_frames)
        # Every other pixel of every other row: the viewers draw ten inches a frame.
        pictures = [self._picture(frames[index])[::2, ::2] for index in shown]
        blank = np.full_like(pictures[0], 255)
        pictures += [blank] * (rows * columns - len(pictures))
        strips = [
            np.concatenate(pictures[start : start + columns], axis=1)
            for start in range(0, len(pictures), columns)
        ]
        pixels = np.concatenate(strips)
        if save_path is not None:
            write_picture(save_path, pixels)
        return pixels

    def animate(
        self, states: Any, interval: int = 300, save_path: str | None = None
    ) -> FuncAnimation:
        """Animates an episode, `interval` ms a frame; written to `save_path` as a GIF."""
        frames = [self._drawn(frame.wrapped) for frame in frames_of(states)]
        film = self._viewer.animate(frames, interval)
        if save_path is not None:
            writer = PillowWriter(fps=1000 / interval)  # pyright: ignore[reportArgumentType]
            write_file(save_path, ".gif", lambda path: film.save(path, writer=writer))
        return film

    def close(self) -> None:
        """Closes the figure."""
        self._viewer.close()

    def _picture(self, state: Any) -> np.ndarray:
        return np.array(self._viewer.render(self._drawn(state.wrapped)))
