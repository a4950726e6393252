"""`result.json`: what a run found, in numbers that a program can read.

{"headline": ["train/success_rate", ...],
 "seeds": [0, 1, 2],
 "stages": {"train": {"step": 400, "seconds": 81.2,
                      "metrics": {"success_rate": {"mean": 0.99, "error": 0.004,
                                                   "values": [0.98, 1.0, 0.99]}}}},
 "environment": {...}}

`jaxmethods evaluate --json FILE` writes the same, with "fresh" beside it, which says of what run,
checkpoint and evaluation seed; `compare --json FILE` writes {"runs": {folder: the same}}.

`error` is the standard error over seeds, null for one seed; numbers are those of the last time a
stage was judged, which report, console and `compare` show as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmethods.files import is_file, write_atomically
from jaxmethods.numerics.statistics import summarize
from jaxmethods.records.run_folder import RunFolder, RunFolderError

PREFIX = "evaluate/"


class Judged(NamedTuple):
    """The last time a stage was judged."""

    step: int
    seconds: float
    metrics: dict[str, np.ndarray]
    """Name -> [seeds]; NaN for what was not finite."""


def last_judged(rows: Sequence[Mapping[str, Any]]) -> dict[str, Judged]:
    """Stage -> its last evaluation, in the order of the run; stages that have one."""
    found: dict[str, Judged] = {}
    for row in rows:
        metrics = {
            name.removeprefix(PREFIX): np.atleast_1d(np.asarray(value, float))
            for name, value in row.items()
            if name.startswith(PREFIX)
        }
        if metrics:
            found[row.get("stage", "")] = Judged(row["step"], row.get("seconds") or 0.0, metrics)
    return found


def named(metrics: Sequence[str], judged: Mapping[str, Judged]) -> Iterator[tuple[str, np.ndarray]]:
    """Name and values [seeds] of those "stage/name" that were measured; the stage where needed."""
    names = [full.partition("/")[2] for full in metrics]
    for full, name in zip(metrics, names, strict=True):
        stage = judged.get(full.partition("/")[0])
        if stage is not None and name in stage.metrics:
            yield (full if names.count(name) > 1 else name), stage.metrics[name]


def write_result(folder: RunFolder, headline: Sequence[str]) -> None:
    """Writes `result.json` from the rows of the run."""
    judged = last_judged(folder.read_metrics())
    write_json(folder.result, describe(folder, headline, judged, read_environment(folder)))


def describe(
    folder: RunFolder,
    headline: Sequence[str],
    judged: Mapping[str, Judged],
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """What `result.json` holds.

    Args:
        folder: of the run, whose config says the seeds.
        headline: the metrics that are the result.
        judged: stage -> when and how it was judged.
        environment: of the process that judged.

    Returns:
        A mapping that JSON can hold, as this module's page shows it.
    """
    config = folder.read_config()
    first, seeds = config.get("seed", 0), config.get("seeds", 1)
    return {
        "headline": list(headline),
        "seeds": list(range(first, first + seeds)),
        "stages": {
            stage: {
                "step": one.step,
                "seconds": one.seconds,
                "metrics": {name: numbers(values) for name, values in one.metrics.items()},
            }
            for stage, one in judged.items()
        },
        "environment": dict(environment),
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes strict JSON: what is not finite must be null already."""
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_headline(folder: RunFolder) -> list[str]:
    """What the run's recipe names as its result; nothing where the run has not ended."""
    if not is_file(folder.result):
        return []
    try:
        return list(json.loads(folder.result.read_text(encoding="utf-8"))["headline"])
    except (ValueError, TypeError, KeyError) as error:
        raise RunFolderError(f"{folder.result}: is not the result of a run") from error


def read_environment(folder: RunFolder) -> Mapping[str, Any]:
    """Versions, devices and command of the run's last start."""
    if not is_file(folder.environment):
        return {}
    try:
        return dict(json.loads(folder.environment.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise RunFolderError(f"{folder.environment}: is not a JSON object") from error


def numbers(values: np.ndarray) -> dict[str, Any]:
    """Mean, error and values of [seeds] for JSON; null for what is not finite."""
    summary = summarize(values)
    return {
        "mean": _finite(summary.mean),
        "error": None if summary.error is None else _finite(summary.error),
        "values": [_finite(value) for value in values.tolist()],
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
