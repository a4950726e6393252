"""Where metrics go besides `metrics.jsonl`: TensorBoard and Weights & Biases, both extras."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxmethods.config import RunConfig
from jaxmethods.errors import import_extra
from jaxmethods.training.run_folder import RunFolder

MODULES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""Writer, which is also the extra's name, to the module it needs."""

Row = Mapping[str, Any]
"""{"stage": str, "step": int, "seconds": float, "train/loss": float or a list, one a seed, ...}"""


class Writer(Protocol):
    """Takes rows of metrics."""

    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


class JsonLinesWriter:
    """Appends one JSON object a row; a row is on disk before the next one begins."""

    def __init__(self, path: Path):
        self._file = path.open("a")

    def write(self, row: Row) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoardWriter:
    """Event files under `tensorboard/` of the run folder."""

    def __init__(self, folder: Path):
        tensorboard = import_extra(MODULES["tensorboard"], "tensorboard")
        self._writer = tensorboard.SummaryWriter(str(folder))

    def write(self, row: Row) -> None:
        for name, value in _scalars(row).items():
            self._writer.add_scalar(f"{row['stage']}/{name}", value, row["step"])

    def close(self) -> None:
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
        values = {f"{row['stage']}/{name}": value for name, value in _scalars(row).items()}
        self._run.log({step_name: row["step"], **values})

    def close(self) -> None:
        self._run.finish()


def check_writers(config: RunConfig) -> None:
    """Raises `MissingExtraError` for a writer that is not installed, before anything is made."""
    for extra in config.training.writers:
        import_extra(MODULES[extra], extra)


def make_writers(folder: RunFolder, config: RunConfig) -> list[Writer]:
    """All writers of a run; see `check_writers` for those that are not installed."""
    makers = {
        "tensorboard": lambda: TensorBoardWriter(folder.path / "tensorboard"),
        "wandb": lambda: WandbWriter(folder, config),
    }
    extras = [makers[name]() for name in config.training.writers]
    return [JsonLinesWriter(folder.metrics), *extras]


def _scalars(row: Row) -> dict[str, float]:
    """Numbers of a row; a list over seeds becomes one entry a seed."""
    scalars: dict[str, float] = {}
    for name, value in row.items():
        if name in ("stage", "step"):
            continue
        if isinstance(value, Sequence):
            scalars |= {f"{name}/seed{index}": item for index, item in enumerate(value)}
        else:
            scalars[name] = value
    return scalars
