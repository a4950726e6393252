"""The folder of one run: what is in it, who may write to it, and how nothing is half-written.

config.yaml        the resolved config; its presence makes the folder a run folder
metrics.jsonl      one JSON object a logged chunk
environment.json   versions and devices of the last start
checkpoints/       one folder a stage
figures/           PNG and GIF files
report.html        everything above on one page
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from jaxmethods.config import Config, read_yaml
from jaxmethods.errors import UserError
from jaxmethods.files import write_atomically


class RunFolderError(UserError):
    """A folder that cannot be used for this run; nothing in it was changed."""


class RunFolder:
    """Paths of a run and the operations that keep them whole."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.environment = path / "environment.json"
        self.checkpoints = path / "checkpoints"
        self.figures = path / "figures"
        self.report = path / "report.html"

    def holds_run(self) -> bool:
        return self.config.is_file()

    @contextmanager
    def claim(self, config: Config, resume: bool) -> Iterator[None]:
        """Makes the folder ours for `config`, for as long as the context lasts.

        Raises:
            RunFolderError: the folder cannot be written, belongs to something else, holds a
                run already (and `resume` is false), holds a run of another config, or another
                process is training in it.
        """
        self._check_owner(resume)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("a")
        except OSError as error:
            raise RunFolderError(
                f"output folder {self.path}: cannot be written ({error.strerror})"
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunFolderError(
                    f"output folder {self.path}: another process is training in it"
                ) from error
            if self.holds_run():
                self._check_same(config)
            else:
                write_atomically(self.config, dump_config(config))
            yield

    def check_shared(self) -> None:
        """Raises `RunFolderError` unless this process sees what the one that claimed it made."""
        if not self.holds_run():
            raise RunFolderError(
                f"output folder {self.path}: not seen by every process; choose a folder that "
                "they share with --out"
            )

    def _check_owner(self, resume: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"output folder {self.path}: is a file")
        if self.holds_run() and not resume:
            raise RunFolderError(
                f"output folder {self.path}: holds a run already; "
                "add --resume to go on with it, or choose another with --out"
            )
        if not self.holds_run() and self.path.is_dir():
            foreign = [entry.name for entry in self.path.iterdir() if entry.name[0] != "."]
            if foreign:
                raise RunFolderError(
                    f"output folder {self.path}: is not empty and not a run folder "
                    f"(no config.yaml, but {sorted(foreign)[0]!r}); choose another with --out"
                )

    def _check_same(self, config: Config) -> None:
        before, now = read_yaml(self.config), yaml.safe_load(dump_config(config))
        # The devices may be others: results don't depend on how they are laid out.
        changed = sorted(_differences(before | {"mesh": None}, now | {"mesh": None}))
        if changed:
            raise RunFolderError(
                f"output folder {self.path}: its run has another config "
                f"({', '.join(changed)}); choose another folder with --out"
            )

    def read_config(self) -> dict[str, Any]:
        """The fields this run was started with."""
        if not self.holds_run():
            raise RunFolderError(f"{self.path}: not a run folder (no config.yaml)")
        return read_yaml(self.config)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All complete rows; an unfinished last line (the process was killed) is left out."""
        if not self.metrics.is_file():
            return []
        rows = []
        lines = self.metrics.read_text().split("\n")
        for number, line in enumerate(lines, 1):
            try:
                rows.append(json.loads(line)) if line else None
            except json.JSONDecodeError as error:
                if number < len(lines):
                    raise RunFolderError(f"{self.metrics}: line {number} is not JSON") from error
        return rows

    def keep_metrics_until(self, stages: Mapping[str, int]) -> list[dict[str, Any]]:
        """Drops rows past the last step of each stage, written after its last checkpoint."""
        rows = [r for r in self.read_metrics() if r["step"] <= stages.get(r["stage"], -1)]
        if self.metrics.is_file():
            write_atomically(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))
        return rows


def dump_config(config: Config) -> str:
    """The resolved config as YAML, fields in their order of definition."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in {*before, *now}:
            below = f"{path}.{name}" if path else name
            yield from _differences(before.get(name), now.get(name), below)
    elif before != now:
        yield f"{path} was {before!r}, now {now!r}"
