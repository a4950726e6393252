"""The folder of one run: what is in it, who may write to it, and how nothing is half-written.

config.yaml        the resolved config; its presence makes the folder a run folder
metrics.jsonl      one JSON object a logged chunk
environment.json   versions and devices of the last start
checkpoints/       one folder a stage that trains
results/           what such a stage hands on, where that isn't its state
parts/             one folder a stage that computes
figures/           PNG and GIF files
result.json        the last evaluation of every stage, with errors over seeds
report.html        everything above on one page
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml

from jaxmethods import files
from jaxmethods.config import Config, ConfigError, OnResume, on_resume, read_yaml, validate
from jaxmethods.errors import UserError
from jaxmethods.files import write_atomically

NO_LOCK = "JAXMETHODS_NO_LOCK"
"""Set in the environment: train in a folder whose file system has no locks."""
ConfigT = TypeVar("ConfigT", bound=Config)


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
        self.results = path / "results"
        self.parts = path / "parts"
        self.figures = path / "figures"
        self.report = path / "report.html"
        self.result = path / "result.json"

    def holds_run(self) -> bool:
        return files.is_file(self.config)

    @contextmanager
    def claim(self, config: Config, resume: bool) -> Iterator[bool]:
        """Makes the folder ours for `config`, for as long as the context lasts.

        A resumed run may differ in the fields that `OnResume` lets change; `update` writes them
        down.

        Yields:
            Whether the run grew: a field that may only grow did.

        Raises:
            RunFolderError: the folder cannot be written, belongs to something else, holds a
                run already (and `resume` is false), holds a run of another config, another
                process is training in it, or its file system cannot tell.
        """
        try:
            self._check_owner(resume)
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("a")
        except OSError as error:
            raise RunFolderError(
                f"output folder {self.path}: cannot be written ({files.reason(error)})"
            ) from error
        with lock:
            self._lock(lock.fileno())
            grew = False
            if self.holds_run():
                grew = self._check_same(config)
            else:
                write_atomically(self.config, dump_config(config))
            files.remove_staged(self.path)
            files.remove_staged(self.figures)
            yield grew

    def update(self, config: Config) -> None:
        """Writes down the config that the run goes on with, where it is another."""
        content = dump_config(config)
        if self.config.read_text(encoding="utf-8") != content:
            write_atomically(self.config, content)

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                raise RunFolderError(
                    f"output folder {self.path}: another process is training in it"
                ) from error
            if os.environ.get(NO_LOCK):
                return
            raise RunFolderError(
                f"output folder {self.path}: its file system has no locks "
                f"({files.reason(error)}), so that a second process in it would not be noticed; "
                f"choose a folder elsewhere with --out, or set {NO_LOCK}=1 if there is none"
            ) from error

    def check_shared(self) -> None:
        """Raises `RunFolderError` unless this process sees what the one that claimed it made."""
        if not self.holds_run():
            raise RunFolderError(
                f"output folder {self.path}: not seen by every process; choose a folder that "
                "they share with --out"
            )

    def _check_owner(self, resume: bool) -> None:
        if files.is_file(self.path):
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

    def _check_same(self, config: Config) -> bool:
        """Whether the run grew; `RunFolderError` where the config is that of another run."""
        before = dump_config(_read_as(type(config), self.config))
        changes = _differences(yaml.safe_load(before), yaml.safe_load(dump_config(config)))
        rules, grew, refused = on_resume(config), False, []
        for path, old, new in sorted(changes, key=lambda change: change[0]):
            rule = _rule_of(rules, path)
            if rule is OnResume.CHANGE:
                continue
            if rule is OnResume.GROW and isinstance(old, int) and new >= old:
                grew = True
                continue
            only = " (it may only grow)" if rule is OnResume.GROW else ""
            refused.append(f"{path} was {old!r}, now {new!r}{only}")
        if refused:
            raise RunFolderError(
                f"output folder {self.path}: its run has another config "
                f"({', '.join(refused)}); choose another folder with --out"
            )
        return grew

    def read_config(self) -> dict[str, Any]:
        """The fields this run was started with."""
        if not self.holds_run():
            raise RunFolderError(f"{self.path}: not a run folder (no config.yaml)")
        return read_yaml(self.config)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All complete rows; an unfinished last line (the process was killed) is left out.

        What is not finite is None in them.

        Raises:
            RunFolderError: the file cannot be read, or a line is no row.
        """
        if not files.is_file(self.metrics):
            return []
        try:
            lines = self.metrics.read_bytes().split(b"\n")
        except OSError as error:
            raise RunFolderError(
                f"{self.metrics}: cannot be read ({files.reason(error)})"
            ) from error
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                rows.append(self._row(line, number)) if line.strip() else None
            except RunFolderError:
                if number < len(lines):  # the last line of all, which no newline ends
                    raise
        return rows

    def _row(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RunFolderError(f"{self.metrics}: line {number} is not JSON") from error
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise RunFolderError(f"{self.metrics}: line {number} is not a row of metrics")
        return _finite(row)

    def keep_metrics_until(self, stages: Mapping[str, int]) -> list[dict[str, Any]]:
        """Drops rows past the last step of each stage, written after its last checkpoint."""
        rows = [r for r in self.read_metrics() if r["step"] <= stages.get(r.get("stage", ""), -1)]
        if files.is_file(self.metrics):
            write_atomically(self.metrics, "".join(map(row_to_json, rows)))
        return rows


def row_to_json(row: Mapping[str, Any]) -> str:
    """A row as one line of JSON; what is not finite, which JSON has no word for, is null."""
    return json.dumps(_finite(row), allow_nan=False) + "\n"


def dump_config(config: Config) -> str:
    """The resolved config as YAML, fields in their order of definition."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(below) for name, below in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(below) for below in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_as(model: type[ConfigT], path: Path) -> ConfigT:
    """A run's config with the fields that were added since; they have their defaults."""
    try:
        return validate(model, read_yaml(path), str(path))
    except ConfigError as error:
        raise RunFolderError(f"{error}; choose another folder with --out") from error


def _rule_of(rules: Mapping[str, OnResume], path: str) -> OnResume | None:
    """The rule of a field, or of one that it is inside of."""
    parts = path.split(".")
    places = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return next((rules[place] for place in places if place in rules), None)


def _differences(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in {*before, *now}:
            below = f"{path}.{name}" if path else name
            yield from _differences(before.get(name), now.get(name), below)
    elif before != now:
        yield path, before, now
