"""What the console shows of a run that has ended, and of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from jaxmethods.numerics.statistics import summarize
from jaxmethods.records.run_folder import RunFolder
from jaxmethods.reports.result import Judged, last_judged, named


def show_result(folder: RunFolder, headline: Sequence[str]) -> None:
    """Prints the result, `table.md` where there is one, and where to look further."""
    console = Console(soft_wrap=True)
    table = Table("result", "", box=None, header_style="bold")
    for name, values in named(headline, last_judged(folder.read_metrics())):
        table.add_row(name, str(summarize(values)))
    if table.row_count:
        console.print(table)
    if (folder.path / "table.md").is_file():
        console.print(
            (folder.path / "table.md").read_text(encoding="utf-8"), end="", highlight=False
        )
    console.print(f"report: {folder.report}", highlight=False)


def show_fresh(judged: Mapping[str, Judged], headline: Sequence[str]) -> None:
    """Prints all that was measured anew, what is the result first."""
    table = Table("stage", "step", "metric", "measured anew", box=None, header_style="bold")
    for stage, one in judged.items():
        for name in sorted(one.metrics, key=lambda name: f"{stage}/{name}" not in headline):
            table.add_row(stage, str(one.step), name, str(summarize(one.metrics[name])))
    Console(soft_wrap=True).print(table)
