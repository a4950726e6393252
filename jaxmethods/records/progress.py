"""What the person in front of the terminal sees of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

SHOWN = 4
"""How many metrics stand beside the bar."""


class Progress:
    """A bar with the metrics that matter; where the output is no terminal, a line for every
    evaluation that `grep` can read: `stage=train step=40 seconds=3 success_rate=0.98`."""

    def __init__(
        self,
        quiet: bool = False,
        console: Console | None = None,
        headline: Sequence[str] = (),
    ):
        """`headline`: names of metrics, "stage/name", that are shown first."""
        self._console = Console(quiet=True) if quiet else console or Console()
        self._lines = not self._console.is_terminal
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}"),
            console=self._console,
            disable=quiet or self._lines,
        )
        self._headline = headline
        self._task: Any = None
        self._evaluation: dict[str, Any] = {}

    def stage(self, name: str, step: int, steps: int | None) -> None:
        """A stage begins; `steps`: None where it isn't known how many there are."""
        self._bar.start()
        self._evaluation = {}
        self._task = self._bar.add_task(name, total=steps, completed=step, shown="")
        start = f" from step {step}" if step else ""
        self.say(f"{name}: {steps} steps{start}" if steps else f"{name}: writing files")

    def compiling(self) -> None:
        self._bar.update(self._task, shown="compiling")

    def compiled(self, seconds: float) -> None:
        self.say(f"compiled in {seconds:.1f} s")
        self._bar.update(self._task, shown="")

    def advance(self, done: int, total: int | None = None) -> None:
        """A stage without metrics has come so far."""
        self._bar.update(self._task, completed=done, total=total, shown="")

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)

    def row(self, row: Mapping[str, Any]) -> None:
        evaluation = self._of("evaluate/", row)
        self._evaluation = evaluation or self._evaluation
        shown = describe(self._evaluation or self._of("train/", row))
        if self._task is not None:
            self._bar.update(self._task, completed=row["step"], shown=shown)
        if not evaluation:
            return
        if self._lines:
            head = f"stage={row['stage']} step={row['step']} seconds={row['seconds']:.0f}"
            self.say(" ".join([head, *(f"{k}={number(v)}" for k, v in evaluation.items())]))
        else:
            self.say(f"step {row['step']:>6} {row['seconds']:>6.0f} s  {describe(evaluation)}")

    def close(self) -> None:
        self._bar.stop()

    def _of(self, prefix: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """Metrics of a kind, those of the headline first."""
        found = {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)}
        first = [name.partition("/")[2] for name in self._headline]
        order = sorted(found, key=lambda name: first.index(name) if name in first else len(first))
        return {name: found[name] for name in order}


def describe(metrics: Mapping[str, Any]) -> str:
    """The first few metrics as text; the mean where there are several seeds."""
    return "  ".join(f"{name} {number(value)}" for name, value in list(metrics.items())[:SHOWN])


def number(value: Any) -> str:
    """The mean over seeds to four digits; nan where one of them is not finite."""
    numbers = [nan if v is None else v for v in (value if isinstance(value, list) else [value])]
    return f"{sum(numbers) / len(numbers):.4g}"
