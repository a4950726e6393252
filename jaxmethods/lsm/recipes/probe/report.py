"""What a run of probes leaves: a table with intervals and a figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxmethods.files import write_atomically
from jaxmethods.lsm.config import ProbeRun as Run
from jaxmethods.lsm.recipes.probe import answering, linear, material
from jaxmethods.lsm.recipes.probe.answering import Answers
from jaxmethods.lsm.recipes.probe.linear import Probed
from jaxmethods.lsm.recipes.probe.material import ALL, OWN, Heard
from jaxmethods.numerics.statistics import Interval, bootstrap_interval, markdown_table
from jaxmethods.plotting import new_figure, open_frame, write_png
from jaxmethods.stages import Results

NAMES = {OWN: "probe, own frames", ALL: "probe, all frames", answering.STAGE: "answers in words"}
COLORS = {OWN: "#1f3b57", ALL: "#9fb2c4", answering.STAGE: "#d98a2b"}


def report(run: Run, results: Results, folder: Path) -> None:
    """Writes table.md and a figure.

    Args:
        run: the config.
        results: of the stages that the recipe names.
        folder: gets the files.
    """
    heard: Heard = results[material.STAGE]
    probed: Probed = results[linear.STAGE]
    answers: Answers | None = results.get(answering.STAGE)
    found = shares(probed, answers)
    chance = 1 / len(linear.classes_of(heard.clips))
    write_atomically(folder / "table.md", table(run, found, probed, chance) + "\n")
    (folder / "figures").mkdir(exist_ok=True)
    draw(found, chance, folder / "figures" / "accuracy.png")


def shares(probed: Probed, answers: Answers | None) -> dict[str, dict[str, Interval]]:
    """Split -> reader -> share of clips that are right, with its interval over clips."""
    found: dict[str, dict[str, Interval]] = {}
    for title in probed.right[OWN]:
        found[title] = {
            pool: bootstrap_interval(splits[title]) for pool, splits in probed.right.items()
        }
        if answers is not None:
            found[title][answering.STAGE] = bootstrap_interval(answers.right[title].T)
    return found


def table(run: Run, found: dict[str, dict[str, Interval]], probed: Probed, chance: float) -> str:
    """A row a split, a column a reader.

    Args:
        run: the config.
        found: of `shares`.
        probed: whose penalties are shown.
        chance: share that is right without hearing.

    Returns:
        Markdown.
    """
    readers = list(next(iter(found.values())))
    rows = [
        [
            "test clips" if title == linear.TESTED else f"{title} left out",
            str(len(probed.right[OWN][title])),
            *(str(own[name]) for name in readers),
            f"{probed.penalty[OWN][title]:g}",
        ]
        for title, own in found.items()
    ]
    groups = [own for title, own in found.items() if title != linear.TESTED]
    if groups:
        means = [f"{np.mean([own[name].mean for own in groups]):.3f}" for name in readers]
        rows.append(["mean of those left out", "", *means, ""])
    head = [run.label, "clips", *(NAMES[name] for name in readers), "penalty"]
    note = (
        "Shares of clips that are right, with 95 % intervals of the bootstrap over clips; chance "
        f"is {chance:.3f}. A probe reads mean and maximum of the frozen encoder's frames: of the "
        "clip's own frames, or of all frames of the window, padding included. The penalty is "
        "chosen by cross-validation of the clips that are learned from."
    )
    return f"{markdown_table(head, rows)}\n\n{note}"


def draw(found: dict[str, dict[str, Interval]], chance: float, path: Path) -> None:
    """Bars with intervals for every split and reader."""
    figure = new_figure(max(4.0, 1.3 * len(found) + 1.5), 3.2)
    panel = figure.subplots()
    readers = list(next(iter(found.values())))
    width = 0.8 / len(readers)
    for number, name in enumerate(readers):
        own = [splits[name] for splits in found.values()]
        means = [one.mean for one in own]
        errors = [[one.mean - one.low for one in own], [one.high - one.mean for one in own]]
        places = np.arange(len(found)) + (number - (len(readers) - 1) / 2) * width
        panel.bar(places, means, width, yerr=errors, color=COLORS[name], label=NAMES[name])
    panel.axhline(chance, color="#5b6b7b", linestyle=":", linewidth=1)
    names = ["test clips" if t == linear.TESTED else f"without\n{t}" for t in found]
    panel.set_xticks(range(len(found)), names, fontsize=8)
    panel.set_ylim(0, 1.02)
    panel.set_ylabel("share of right clips")
    figure.legend(fontsize=8, frameon=False, loc="outside upper center", ncols=len(readers))
    open_frame(panel)
    write_png(figure, path)
