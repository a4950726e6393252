"""Figures through matplotlib's object interface: no window opens, and threads share no state."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmethods.files import write_atomically

if TYPE_CHECKING:  # half a second to import, for runs that draw nothing yet
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1f3b57"
"""The color of what a figure is about."""
TEXT = "#0a0b0c"
"""The color of axes and words in a figure that follows its reader's light or dark."""
THEME = """<style>svg { color: #1d2733; --ink: #1f3b57 }
@media (prefers-color-scheme: dark) { svg { color: #dde3e9; --ink: #7fb2e5 } }</style>"""


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """An empty figure of that many inches whose panels make room for their labels.

    Args:
        width: inches.
        height: inches.
        options: further arguments of `matplotlib.figure.Figure`.

    Returns:
        The figure, with a canvas that draws without a display.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", **options)
    FigureCanvasAgg(figure)
    return figure


def open_frame(panel: Axes) -> None:
    """Leaves the two axes of a panel and removes the rest of its frame."""
    panel.spines[["top", "right"]].set_visible(False)


def write_png(figure: Figure, path: Path, dpi: int = 110, **options: Any) -> None:
    """Writes a figure whole or not at all: others may read the file meanwhile.

    Args:
        figure: what to draw.
        path: the PNG file.
        dpi: pixels an inch.
        options: further arguments of `Figure.savefig`.

    Raises:
        FileError: the file cannot be written.
    """
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi, **options)
    write_atomically(path, content.getvalue())


def themed_svg(figure: Figure) -> str:
    """A figure as SVG whose `TEXT` and `INK` are light where the page around it is dark.

    Args:
        figure: with `TEXT` and `INK` among its colors.

    Returns:
        The SVG element, for an image of its own.
    """
    import matplotlib

    content = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "jaxmethods"}):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    drawn = content.getvalue().replace(TEXT, "currentColor").replace(INK, "var(--ink)")
    begin, _, rest = drawn[drawn.index("<svg") :].partition(">")
    return f"{begin}>{THEME}{rest}"
