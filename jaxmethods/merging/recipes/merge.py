"""Merging checkpoints on the command line: one new model folder out of several.

    jaxmethods run configs/merging/merge_ties.yaml --base DIR --experts "[DIR, DIR]" --out runs/x

leaves the model in runs/x/model.
"""

from __future__ import annotations

from pathlib import Path

from jaxmethods.files import refusals
from jaxmethods.merging.checkpoints.inputs import coefficients, open_inputs
from jaxmethods.merging.checkpoints.streaming import write_merged
from jaxmethods.merging.config import MergeRun as Run
from jaxmethods.stages import Advance, Recipe, Results, Write

GIGABYTE = 1e9


def recipe(run: Run) -> Recipe:
    """One stage, which writes the merged model.

    Raises:
        MergeError, HubError: checkpoints cannot be read or don't fit each other; their headers are
            compared here, before anything is written.
    """
    inputs = open_inputs(run)
    coefficients(inputs)

    def write(results: Results, path: Path, advance: Advance) -> dict[str, float]:
        del results
        with refusals("the merged model"):
            summary = write_merged(inputs, path, advance)
        return {
            "merged": summary.merged,
            "copied": summary.copied,
            "gigabytes_read": summary.read / GIGABYTE,
            "gigabytes_written": summary.written / GIGABYTE,
        }

    headline = ("merged", "copied", "gigabytes_read", "gigabytes_written")
    return Recipe([Write("model", write)], headline=[f"model/{name}" for name in headline])
