"""A stage that leaves a folder of files, which has its name when it is whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from jaxmethods import files
from jaxmethods.devices import processes as distributed
from jaxmethods.records.record import Record
from jaxmethods.records.run_folder import RunFolder
from jaxmethods.stages import Place, Results, Write
from jaxmethods.training.stopping import Interrupted, Stop


class Written:
    """Where a writing stage's folder is."""

    def __init__(self, folder: RunFolder, stage: Write):
        self.stage = stage
        self.path = folder.path / stage.name

    def reached(self) -> int:
        """1 where the folder is there."""
        return int(self.path.is_dir())

    def close(self) -> None:
        """Nothing is open."""

    def result(self, results: Results, place: Place) -> Path | None:
        """The folder; None where it isn't there."""
        del results, place
        return self.path if self.path.is_dir() else None


class WriteRun:
    """One run of a stage."""

    def __init__(self, kept: Written, record: Record, stop: Stop):
        self.kept = kept
        self.record = record
        self.stop = stop

    def to_the_end(self, results: Results) -> Path:
        """The folder's path; files are written unless they are there."""
        if not distributed.agree(self.kept.reached()):
            metrics = distributed.together(lambda: self._write(results))
            if metrics is not None:
                named = {f"evaluate/{name}": value for name, value in metrics.items()}
                self.record.write(self.kept.stage.name, 1, named)
        return self.kept.path

    def _write(self, results: Results) -> Any:
        if not distributed.is_writer():
            return None
        self.record.progress.stage(self.kept.stage.name, 0, None)
        with files.refusals(self.kept.path):
            parent = self.kept.path.parent
            temporary = Path(tempfile.mkdtemp(prefix=files.STAGED, dir=parent))
        try:
            metrics = self.kept.stage.write(results, temporary / "files", self._advance)
            with files.refusals(self.kept.path):
                files.let_others_read(temporary / "files")
                os.replace(temporary / "files", self.kept.path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return metrics

    def _advance(self, done: int, total: int) -> None:
        """Shows how far the stage is, which is where it can be stopped."""
        self.record.progress.advance(done, total)
        if self.stop.signal_number is not None:
            name = self.kept.stage.name
            raise Interrupted(
                f"stopped by a signal (stage {name}); its files are begun anew with --resume",
                self.stop.signal_number,
            )
