"""Runs beside each other."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jaxmethods.cli import main
from jaxmethods.records.run_folder import RunFolder, RunFolderError
from jaxmethods.reports.compare import compare


def run_folder(path, *rows):
    path.mkdir()
    (path / "config.yaml").write_text("method: toy\n")
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RunFolder(path)


def test_the_last_evaluation_counts_with_the_standard_error_of_its_seeds(tmp_path):
    seeds = [0.5, 0.7, 0.9]
    many = run_folder(
        tmp_path / "many",
        {"step": 1, "evaluate/success": [0.0, 0.0, 0.0]},
        {"step": 2, "evaluate/success": seeds},
        {"step": 3, "train/loss": 1.0},
    )
    one = run_folder(tmp_path / "one", {"step": 2, "evaluate/success": 1.0, "evaluate/length": 7})
    table = compare([many, one]).splitlines()
    assert table[0] == "| run | seeds | success | length |"
    error = np.std(seeds, ddof=1) / np.sqrt(3)
    assert table[2] == f"| many | 3 | 0.7 ± {error:.2g} |  |"
    assert table[3] == "| one | 1 | 1 | 7 |"


def test_runs_without_an_evaluation_are_named(tmp_path):
    folder = run_folder(tmp_path / "early", {"step": 1, "train/loss": 1.0})
    with pytest.raises(RunFolderError, match="early: nothing was evaluated"):
        compare([folder])


def test_the_command_prints_the_table(tmp_path, capsys):
    run_folder(tmp_path / "a", {"step": 1, "evaluate/success": 0.25})
    assert main(["compare", str(tmp_path / "a")]) == 0
    assert "| a | 1 | 0.25 |" in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "none")]) == 2
