"""Runs the evaluation of a method with nothing to train, part by part, so that it can go on.

A part's arrays are kept in `parts/` of the run folder under the part's name; with `--resume`, parts
that are there are not computed again. When all is done, parts make way for the results.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from jaxmethods.config import Config
from jaxmethods.method import Evaluated, Part, Work
from jaxmethods.training.environment import describe_environment
from jaxmethods.training.report import write_evaluation
from jaxmethods.training.run_folder import RunFolder, write_atomically


def run_evaluation(
    work: Work, config: Config, folder: RunFolder, resume: bool = False, quiet: bool = True
) -> Evaluated:
    """Computes what is missing, writes results, figures and the report into the folder."""
    with folder.claim(config, resume), Progress(disable=quiet) as progress:
        write_atomically(folder.environment, json.dumps(describe_environment(), indent=1))
        parts = folder.path / "parts"
        parts.mkdir(exist_ok=True)
        found = [_arrays(parts, part) for part in progress.track(work.parts, description="scored")]
        evaluated = work.finish(found)
        for name, content in evaluated.files.items():
            write_atomically(folder.path / name, content)
        folder.figures.mkdir(exist_ok=True)
        if evaluated.draw is not None:
            evaluated.draw(folder.figures)
        write_evaluation(folder, evaluated.metrics)
        shutil.rmtree(parts)
    return evaluated


def _arrays(parts: Path, part: Part) -> Mapping[str, Any]:
    file = parts / f"{part.name}.npz"
    if file.is_file():
        with np.load(file, allow_pickle=False) as kept:
            return {name: kept[name] for name in kept.files}
    arrays = part.compute()
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_atomically(file, content.getvalue())
    return arrays
