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


SPEED_OF = 600.0
"""Seconds of a run from which its speed, and so the time left, is estimated; chunks can be long."""


class Progress:
    """A bar for every stage with the time that is left and the metrics that matter.

    Where the output is no terminal, a line for every record that `grep` can read:
    `stage=train step=40 of=400 seconds=3 success_rate=0.98`.
    """

    def __init__(
        self,
        quiet: bool = False,
        console: Console | None = None,
        headline: Sequence[str] = (),
        stages: Sequence[str] = (),
    ):
        """`headline`: names of metrics, "stage/name", that are shown first; `stages`: their names,
        in the order of the run."""
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
            speed_estimate_period=SPEED_OF,
        )
        self._stages = list(stages)
        self._total: int | None = None
        self._headline = headline
        self._task: Any = None
        self._evaluation: dict[str, Any] = {}

    def stage(self, name: str, step: int, steps: int | None) -> None:
        """A stage begins; `steps`: None where it isn't known how many there are."""
        self._bar.start()
        self._evaluation, self._total = {}, steps
        place = f"{self._stages.index(name) + 1}/{len(self._stages)} " if self._stages else ""
        self._task = self._bar.add_task(place + name, total=steps, completed=step, shown="")
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
        evaluation = self._of(("evaluate/", "curve/"), row)
        self._evaluation = evaluation or self._evaluation
        shown = describe(self._evaluation or self._of(("train/",), row))
        if self._task is not None:
            self._bar.update(self._task, completed=row["step"], shown=shown)
        if self._lines:
            self.say(self._record(row, evaluation))
        elif evaluation:
            self.say(f"step {row['step']:>6} {row['seconds']:>6.0f} s  {describe(evaluation)}")

    def _record(self, row: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
        """All that was measured, as `name=value`; of training alone where nothing was judged."""
        head = f"stage={row['stage']} step={row['step']}"
        of = f" of={self._total}" if self._total else ""
        metrics = evaluation or {n: v for n, v in row.items() if n.startswith("train/")}
        values = [f"{name}={number(value)}" for name, value in metrics.items()]
        return " ".join([f"{head}{of} seconds={row['seconds']:.0f}", *values])

    def close(self) -> None:
        self._bar.stop()

    def _of(self, kinds: tuple[str, ...], row: Mapping[str, Any]) -> dict[str, Any]:
        """Metrics of some kinds, those of the headline first."""
        found = {k.partition("/")[2]: v for k, v in row.items() if k.startswith(kinds)}
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
