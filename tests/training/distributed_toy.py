"""The command line with the toys as methods: `python -m tests.training.distributed_toy`.

`TOY_STOP_AT=STEP` in the environment has it send itself SIGTERM at that step.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from jaxmethods import cli, registry
from jaxmethods.config import OnResume, TrainingRunConfig
from jaxmethods.layout import Rule
from jaxmethods.records import progress
from jaxmethods.records.progress import Progress
from jaxmethods.stages import Recipe, Results
from tests.training import toy

STOP_AT = "TOY_STOP_AT"


class Run(TrainingRunConfig):
    """Config of the toy."""

    method: Literal["toy"]
    steps: Annotated[int, OnResume.GROW]
    width: int = 2


def report(results: Results, folder: Path) -> None:
    """A figure that only a process with the whole state can draw."""
    np.savetxt(folder / "figures" / "weights.txt", np.asarray(results["second"].weights[0]))


def recipe(run: Run) -> Recipe:
    """Weights [4, width], their rows split over `data`."""
    rules = (Rule("weights", ("data",)),)
    recipe = toy.recipe(run.steps, 8, shape=(4, run.width), rules=rules)
    return recipe._replace(report=report, reads=("second",))


class StoppedProgress(Progress):
    """Sends its own process SIGTERM at a step."""

    def row(self, row):
        super().row(row)
        if row["step"] == int(os.environ[STOP_AT]):
            os.kill(os.getpid(), signal.SIGTERM)


def main(arguments: list[str]) -> int:
    registry.METHODS["toy"] = registry.Entry("tests.training.distributed_toy", "A toy.")
    registry.METHODS["stages"] = registry.Entry("tests.training.distributed_stages", "All stages.")
    return cli.main(arguments)


if __name__ == "__main__":
    if STOP_AT in os.environ:
        progress.Progress = StoppedProgress  # type: ignore[misc]
    sys.exit(main(sys.argv[1:]))
