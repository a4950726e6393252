"""A stage that computes, part by part, so that one that is stopped goes on.

A part's arrays are kept in `parts/STAGE/` of the run folder under the part's name; parts that are
there are not computed again.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmethods import files
from jaxmethods.devices import processes as distributed
from jaxmethods.devices.sharding import local_copy
from jaxmethods.errors import DataError
from jaxmethods.records.record import Record
from jaxmethods.records.run_folder import RunFolder
from jaxmethods.stages import Arrays, Compute, Part, Place, Results
from jaxmethods.training.judging import StageError
from jaxmethods.training.stopping import Interrupted, Stop


class Computed:
    """Where a computing stage's parts are kept."""

    def __init__(self, folder: RunFolder, stage: Compute):
        self.stage = stage
        self.folder = folder.parts / stage.name

    def reached(self) -> int:
        """How many parts are kept."""
        return len(list(self.folder.glob("*.npz")))

    def close(self) -> None:
        """Nothing is open."""

    def file(self, part: Part) -> Path:
        """Raises `StageError` for a name that is no file's."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", part.name):
            raise StageError(
                f"stage {self.stage.name}: part {part.name!r}: expected a name of letters, digits, "
                "dots, dashes and underscores"
            )
        return self.folder / f"{part.name}.npz"

    def read(self, part: Part) -> Arrays:
        """Raises `StageError` for a file that is not whole."""
        try:
            return files.read_npz(self.file(part))
        except DataError as error:
            raise StageError(f"{error}; remove it to compute it again") from error

    def result(self, results: Results, place: Place) -> Any:
        """From kept parts alone; None where one is missing."""
        parts = self.stage.parts(results, place)
        if not all(files.is_file(self.file(part)) for part in parts):
            return None
        return self.stage.finish([self.read(part) for part in parts])


class ComputeRun:
    """One run of a stage."""

    def __init__(self, kept: Computed, place: Place, record: Record, stop: Stop):
        self.stage = kept.stage
        self.kept = kept
        self.place = place
        self.record = record
        self.stop = stop

    def to_the_end(self, results: Results) -> Any:
        """The stage's result, from those of the stages before it."""
        parts = distributed.together(lambda: self.stage.parts(results, self.place))
        # A shared disk may show a file late to some: all do what one of them sees.
        missing = [not distributed.agree(files.is_file(self.kept.file(part))) for part in parts]
        done = len(parts) - sum(missing)
        if sum(missing):
            self.record.progress.stage(self.stage.name, done, len(parts))
        found = []
        for place, (part, absent) in enumerate(zip(parts, missing, strict=True)):
            if absent:
                self._stop_if_asked(place, len(parts))
                found.append(self._compute(part))
                done += 1
                self.record.progress.advance(done)
            else:
                found.append(distributed.together(lambda part=part: self.kept.read(part)))
        result = distributed.together(lambda: self.stage.finish(found))
        if self.stage.metrics is not None and self.stage.name not in self.record.before:
            metrics = self.stage.metrics(result)
            named = {f"evaluate/{name}": value for name, value in metrics.items()}
            self.record.write(self.stage.name, len(parts), named)
        return result

    def _compute(self, part: Part) -> Arrays:
        computed = part.compute()
        on_devices = {k: v for k, v in computed.items() if isinstance(v, jax.Array)}
        host = dict(computed) | (jax.device_get(local_copy(on_devices)) if on_devices else {})
        arrays = {name: np.asarray(value) for name, value in host.items()}

        def keep() -> None:
            if not distributed.is_writer():
                return
            with files.refusals(self.kept.folder):
                self.kept.folder.mkdir(parents=True, exist_ok=True)
            files.write_npz(self.kept.file(part), arrays)

        distributed.together(keep)
        return arrays

    def _stop_if_asked(self, done: int, parts: int) -> None:
        number = self.stop.agreed()
        if number is None:
            return
        name = signal.Signals(number).name
        raise Interrupted(
            f"{name}: stopped after part {done} of {parts} (stage {self.stage.name}); "
            "go on with --resume",
            number,
        )
