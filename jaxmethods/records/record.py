"""What a run writes down while it runs: rows of metrics, and the seconds it took so far."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxmethods.records.progress import Progress
from jaxmethods.records.writers import Writer


class Record:
    """Gives every row to the writers and to whoever watches; without writers to the latter only."""

    def __init__(
        self,
        writers: Sequence[Writer],
        progress: Progress,
        before: Sequence[Mapping[str, Any]] = (),
    ):
        """`before`: rows of the run that is resumed."""
        self.progress = progress
        self.before = {row.get("stage") for row in before}
        self.judged = {
            (row.get("stage"), row.get("step"))
            for row in before
            if any(name.startswith(("evaluate/", "curve/")) for name in row)
        }
        """Stages and steps whose evaluation is in these rows."""
        self._writers = writers
        seconds = before[-1].get("seconds") or 0.0 if before else 0.0
        self._start = time.perf_counter() - seconds

    def write(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
        seconds = round(time.perf_counter() - self._start, 3)
        row = {"stage": stage, "step": step, "seconds": seconds}
        row |= {name: plain(value) for name, value in metrics.items()}
        for writer in self._writers:
            writer.write(row)
        self.progress.row(row)


def plain(value: Any) -> Any:
    """One number for one seed, a list for several; integers stay integers, not finite is None."""
    numbers = np.asarray(value).reshape(-1)
    flat = [v if ok else None for v, ok in zip(numbers.tolist(), np.isfinite(numbers), strict=True)]
    return flat[0] if len(flat) == 1 else flat
