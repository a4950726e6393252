"""What every finished run has to stand: a number is the same wherever it is shown."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np

from jaxmethods.numerics.statistics import Summary, summarize
from jaxmethods.records.run_folder import RunFolder
from jaxmethods.reports.compare import compare
from jaxmethods.reports.console import show_result
from jaxmethods.reports.curves import titled, worded


def check_same_numbers(folder: Path) -> None:
    """Asserts that record, `result.json`, console, report and `compare` carry the same numbers."""
    run = RunFolder(folder)
    result = json.loads(run.result.read_text())
    stages, headline = result["stages"], result["headline"]
    top, _, bottom = run.report.read_text().partition("<details>")
    assert "<p class=headline>" in top
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        show_result(run, headline)
    measured = [full.partition("/") for full in headline]
    names = [name for _, _, name in measured]
    found = 0
    for stage, _, name in measured:
        if name not in stages.get(stage, {"metrics": {}})["metrics"]:
            continue  # a quantity that this run does not have
        found += 1
        label = f"{stage}/{name}" if names.count(name) > 1 else name
        number = shown(stages[stage]["metrics"][name])
        line = rf"^ *{re.escape(label)} +{re.escape(number)} *$"
        assert re.search(line, printed.getvalue(), re.MULTILINE), label
        words = worded(label.replace("/", ": "))
        error = stages[stage]["metrics"].get(f"{name}_error")
        if error and len(error["values"]) == 1:  # one seed: the page has its own error beside it
            number = str(Summary(stages[stage]["metrics"][name]["mean"], error["mean"]))
        sentence = f"{titled(words)} is <b>{number}</b>"
        tile = f"<li><b>{number}</b>{words}</li>"
        assert top.count(sentence) + top.count(tile) == 1  # said once, and not again below
        assert cell(name, number) not in part_of(stage, bottom)
    assert found
    rows = run.read_metrics()
    for stage, one in stages.items():
        for name, numbers in one["metrics"].items():
            own = [row for row in rows if row["stage"] == stage and f"evaluate/{name}" in row]
            assert numbers["values"] == np.reshape(own[-1][f"evaluate/{name}"], -1).tolist()
            beside = name.endswith("_error") and len(numbers["values"]) == 1
            if f"{stage}/{name.removesuffix('_error') if beside else name}" not in headline:
                assert part_of(stage, bottom).count(cell(name, shown(numbers))) == 1
    last = list(stages.values())[-1]["metrics"]
    head, _, line = (line.strip("| ").split(" | ") for line in compare([run]).splitlines())
    beside = dict(zip(head[2:], line[2:], strict=True))
    assert beside == {name: shown(numbers) for name, numbers in last.items()}


def shown(numbers: dict) -> str:
    """Mean and error as they are printed, from the values of the seeds."""
    return str(summarize(np.array(numbers["values"], float)))


def part_of(stage: str, folded: str) -> str:
    """A stage's table among the folded numbers."""
    return folded.partition(f"<p>{stage}, step ")[2].partition("</table>")[0]


def cell(label: str, number: str) -> str:
    """A row of the report's tables."""
    return f"<td>{label.replace('_', ' ')}</td><td class=number>{number}</td>"
