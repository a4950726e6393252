"""Where metrics go besides `metrics.jsonl`: TensorBoard and Weights & Biases, both extras."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxmethods import files
from jaxmethods.config import RunConfig, loop_of
from jaxmethods.errors import import_extra
from jaxmethods.records.run_folder import RunFolder, row_to_json

MODULES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""Writer, which is also the extra's name, to the module it needs."""

Row = Mapping[str, Any]
"""{"stage": str, "step": int, "seconds": float, "train/loss": float or a list, one a seed, ...};
what is not finite is None."""


class Writer(Protocol):
    """Takes rows of metrics."""

    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


class JsonLinesWriter:
    """Appends one JSON object a row; a row is in the file, whole, before the next one begins."""

    def __init__(self, path: Path):
        self._path = path
        with files.refusals(path):
            self._file = path.open("ab", buffering=0)

    def write(self, row: Row) -> None:
        """Raises `FileError` where the row cannot be written; the file then ends with the last."""
        line = row_to_json(row).encode()
        with files.refusals(self._path):
            whole = os.fstat(self._file.fileno()).st_size
            try:
                while line:  # a disk that fills may take a part
                    line = line[self._file.write(line) :]
            except OSError:
                os.ftruncate(self._file.fileno(), whole)
                raise

    def close(self) -> None:
        self._file.close()


class TensorBoardWriter:
    """Event files under `tensorboard/` of the run folder.

    Rows are written where they come: tensorboardX's `SummaryWriter` hands them to a thread, which a
    full disk ends, and whoever writes next then waits for it for ever.
    """

    def __init__(self, folder: Path):
        name = MODULES["tensorboard"]
        self._folder = folder
        self._summary = import_extra(f"{name}.summary", "tensorboard")
        self._events = import_extra(f"{name}.proto.event_pb2", "tensorboard")
        writer = import_extra(f"{name}.event_file_writer", "tensorboard")
        with files.refusals(folder):
            folder.mkdir(exist_ok=True)
            self._writer = writer.EventsWriter(str(folder / "events"))

    def write(self, row: Row) -> None:
        with files.refusals(self._folder):
            for name, value in scalars(row).items():
                event = self._events.Event(wall_time=time.time(), step=row["step"])
                event.summary.CopyFrom(self._summary.scalar(f"{row['stage']}/{name}", value))
                self._writer.write_event(event)
            self._writer.flush()

    def close(self) -> None:
        with files.refusals(self._folder):
            self._writer.close()


class WandbWriter:
    """One W&B run, named after the run folder (`WANDB_MODE=offline` keeps it on this machine)."""

    def __init__(self, folder: RunFolder, config: RunConfig):
        wandb = import_extra(MODULES["wandb"], "wandb")
        self._run = wandb.init(
            project="jaxmethods",
            name=folder.path.name,
            dir=str(folder.path),
            config=config.model_dump(mode="json"),
        )

    def write(self, row: Row) -> None:
        step_name = f"{row['stage']}/step"
        values = {f"{row['stage']}/{name}": value for name, value in scalars(row).items()}
        self._run.log({step_name: row["step"], **values})

    def close(self) -> None:
        self._run.finish()


def check_writers(config: RunConfig) -> None:
    """Raises `MissingExtraError` for a writer that is not installed, before anything is made."""
    for extra in loop_of(config).writers:
        import_extra(MODULES[extra], extra)


def writer_makers(folder: RunFolder, config: RunConfig) -> list[Callable[[], Writer]]:
    """What opens the writers of a run; see `check_writers` for those that are not installed."""
    extras: dict[str, Callable[[], Writer]] = {
        "tensorboard": lambda: TensorBoardWriter(folder.path / "tensorboard"),
        "wandb": lambda: WandbWriter(folder, config),
    }
    chosen = [extras[name] for name in loop_of(config).writers]
    return [lambda: JsonLinesWriter(folder.metrics), *chosen]


def scalars(row: Row) -> dict[str, float]:
    """Finite numbers of a row; a list over seeds becomes one entry a seed."""
    found: dict[str, float | None] = {}
    for name, value in row.items():
        if name in ("stage", "step"):
            continue
        if isinstance(value, Sequence):
            found |= {f"{name}/seed{index}": item for index, item in enumerate(value)}
        else:
            found[name] = value
    return {name: value for name, value in found.items() if value is not None}
