"""Runs beside each other."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest

from jaxmethods.cli import main
from jaxmethods.records.run_folder import RunFolder, RunFolderError
from jaxmethods.reports.compare import compare, titles


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
    assert table[2] == f"| many | 3 | 0.70 ± {error:.2f} |  |"
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


def test_the_page_lays_the_curves_of_runs_over_each_other(tmp_path):
    """One panel a metric with a line for every run; every number is said once, the result first."""
    for name, values in (("fast", (0.25, 0.5, 0.75)), ("slow", (0.125, 0.375, 0.625))):
        rows = [
            {
                "stage": "play",
                "step": step,
                "evaluate/success": [value, value + 0.1],
                "train/games": [8.0 * step, 8.0 * step],
            }
            for step, value in enumerate(values)
        ]
        folder = run_folder(tmp_path / name, *rows)
        folder.result.write_text('{"headline": ["play/success"]}')
    page = tmp_path / "page.html"
    runs = [str(tmp_path / name) for name in ("fast", "slow")]
    assert main(["compare", *runs, "--page", str(page)]) == 0
    shown, _, _ = page.read_text().partition("<details>")
    for name, number in (("fast", "0.800 ± 0.050"), ("slow", "0.675 ± 0.050")):
        assert f"<tr><td>{name}</td><td class=number>{number}</td></tr>" in shown
    # Of what is the same in both runs no curve is drawn.
    (drawn,) = re.findall(r"data:image/svg\+xml;base64,([^']+)", shown)
    svg = base64.b64decode(drawn).decode()
    assert "Play: success" in svg
    assert ">fast<" in svg
    assert ">slow<" in svg
    assert "prefers-color-scheme: dark" in svg


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for number, above in enumerate(("one", "two")):
        (tmp_path / above).mkdir()
        run_folder(tmp_path / above / "run", {"step": 1, "evaluate/success": 0.25 + number / 2})
    folders = [RunFolder(tmp_path / above / "run") for above in ("one", "two")]
    assert titles(folders) == ["one/run", "two/run"]
    assert titles(folders[:1] * 2) == ["run", "run"]
    assert compare(folders).splitlines()[2:] == ["| one/run | 1 | 0.25 |", "| two/run | 1 | 0.75 |"]


def test_a_terminal_without_the_character_gets_a_question_mark(tmp_path, monkeypatch):
    run_folder(tmp_path / "a", {"step": 1, "evaluate/success": [0.25, 0.75]})
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    assert main(["compare", str(tmp_path / "a")]) == 0
    terminal.seek(0)
    assert "| a | 2 | 0.50 ? 0.25 |" in terminal.read()
