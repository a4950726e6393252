"""What the person in front of the terminal sees of a run."""

from __future__ import annotations

from collections.abc import Mapping
from math import nan
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

SHOWN = 4
"""How many metrics stand beside the bar."""


class Progress:
    """A bar with the metrics that matter; plain lines where the output is not a terminal."""

    def __init__(self, quiet: bool = False, console: Console | None = None):
        self._console = Console(quiet=True) if quiet else console or Console()
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}"),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._task: Any = None
        self._evaluation: dict[str, Any] = {}

    def stage(self, name: str, step: int, steps: int) -> None:
        self._bar.start()
        self._task = self._bar.add_task(name, total=steps, completed=step, shown="compiling")
        start = f" from step {step}" if step else ""
        self._console.print(f"{name}: {steps} steps{start}")

    def compiled(self, seconds: float) -> None:
        self._console.print(f"compiled in {seconds:.1f} s")
        self._bar.update(self._task, shown="")

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False)

    def row(self, row: Mapping[str, Any]) -> None:
        evaluation = {name: value for name, value in row.items() if name.startswith("evaluate/")}
        self._evaluation = evaluation or self._evaluation
        train = {name: value for name, value in row.items() if name.startswith("train/")}
        self._bar.update(
            self._task, completed=row["step"], shown=describe(self._evaluation or train)
        )
        if evaluation:
            seconds = f"{row['seconds']:.0f} s"
            self._console.print(f"step {row['step']:>6} {seconds:>7}  {describe(evaluation)}")

    def close(self) -> None:
        self._bar.stop()


class ByteProgress:
    """A bar of bytes for work without metrics; nothing where the output is not a terminal."""

    def __init__(self, name: str, quiet: bool = False, console: Console | None = None):
        console = Console(quiet=True) if quiet else console or Console()
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task(name, total=None)

    def advance(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)

    def __enter__(self) -> ByteProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def describe(metrics: Mapping[str, Any]) -> str:
    """The first few metrics as text; the mean where there are several seeds."""
    parts = []
    for name, value in list(metrics.items())[:SHOWN]:
        numbers = [nan if v is None else v for v in (value if isinstance(value, list) else [value])]
        parts.append(f"{name.split('/', 1)[-1]} {sum(numbers) / len(numbers):.4g}")
    return "  ".join(parts)
