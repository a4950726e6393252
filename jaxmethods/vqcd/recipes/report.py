"""What a continual run leaves: tables, figures, and planners that open again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.files import write_atomically
from jaxmethods.layout import path_name
from jaxmethods.numerics.statistics import mean_and_error
from jaxmethods.stages import Results
from jaxmethods.vqcd import TaskData, feature_difference, gather
from jaxmethods.vqcd.bank import kind
from jaxmethods.vqcd.recipes import figures, pictures
from jaxmethods.vqcd.recipes.learners import Learner
from jaxmethods.vqcd.recipes.planner_files import save_planners
from jaxmethods.vqcd.recipes.spaces import SIDES, Aligned
from jaxmethods.vqcd.recipes.summary import SUMMARY
from jaxmethods.vqcd.recipes.tasks import Tasks

DIFFERENCE_ROWS = 4096
"""Rows of a task that distances to other tasks are measured on."""


def report(tasks: Tasks, learners: Sequence[Learner], results: Results, folder: Path) -> None:
    """Writes table.md, the figures, and the first learner's planner of every seed.

    Args:
        tasks: the run's tasks.
        learners: all that were trained.
        results: of the run's stages.
        folder: of the run.
    """
    summary = results[SUMMARY]
    seconds = training_seconds(folder.parent, tasks, learners)
    text = "\n".join(
        [
            final_table(tasks, learners, summary),
            matrices(tasks, learners, summary),
            costs(tasks, learners, results, seconds),
            spaces_table(tasks, results),
        ]
    )
    write_atomically(folder / "table.md", text)
    names = [tasks.run.tasks[number].name for number in tasks.run.sequence]
    continual = [x for x in learners if not x.alone and not x.joint]
    figures.draw_matrices(
        {x.title: summary[f"{x.title}_matrix"].mean(0) for x in continual},
        names,
        folder / "figures" / "scores.png",
    )
    figures.draw_final(
        names,
        {x.title: summary[f"{x.title}_matrix"][:, :, -1] for x in learners},
        {name: behavior_scores(tasks, results, name) for name in names},
        folder / "figures" / "final.png",
    )
    first = learners[0]
    figures.draw_spaces(
        names,
        {name: results[f"codes_{name}"].quality for name in names},
        {side: differences(tasks, results, side) for side in SIDES},
        folder / "figures" / "spaces.png",
    )
    if not first.joint and not first.alone:
        last = len(names) - 1
        bank = first.bank(results, last)
        figures.draw_owners(
            jax.tree.map(lambda leaf: np.asarray(leaf)[0], bank.owner),
            first.owners(),
            folder / "figures" / "owners.png",
        )
        pictures.draw_plays(tasks, first, results, folder / "figures")
        save_planners(tasks, first, results, folder)


def final_table(tasks: Tasks, learners: Sequence[Learner], summary: Any) -> str:
    """A row a learner: scores of all tasks at the end, their mean, and what was forgotten."""
    names = [tasks.run.tasks[number].name for number in tasks.run.sequence]
    lines = [
        f"| learner | {' | '.join(names)} | mean | forgetting | plans kept | forward transfer |",
        f"| --- |{' --- |' * (len(names) + 4)}",
    ]
    for learner in learners:
        title = learner.title
        last, over = summary[f"{title}_matrix"][:, :, -1], summary[f"{title}_errors"]
        cells = [_cell(last[:, row], over[:, row]) for row in range(len(names))]
        cells.append(_cell(summary[f"{title}_final"]))
        forgets = f"{title}_forgetting" in summary
        cells.append(_cell(summary[f"{title}_forgetting"]) if forgets else "")
        kept = summary.get(f"{title}_plans_kept")
        cells.append("" if kept is None else ("bit for bit" if kept.all() else "no"))
        transfer = summary.get(f"{title}_forward_transfer")
        cells.append("" if transfer is None else f"{transfer.mean():.2f}")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    over = f"{tasks.run.seeds} training seeds" if tasks.run.seeds > 1 else "one training seed"
    return "\n".join(
        [
            *lines,
            "",
            f"Scores after the last task, {over}. In brackets the standard error over the "
            f"{tasks.run.evaluation.episodes} episodes of one trained planner, behind ± the one "
            "over training seeds.",
            "",
        ]
    )


def _cell(values: np.ndarray, roll_outs: np.ndarray | None = None) -> str:
    """A mean with its error over seeds and, in brackets, over episodes."""
    mean, error = mean_and_error(np.asarray(values, float))
    text = f"{mean:.1f}" if error is None else f"{mean:.1f} ± {error:.1f}"
    if roll_outs is not None and np.isfinite(roll_outs).all():
        text += f" ({roll_outs.mean():.1f})"
    return text


def matrices(tasks: Tasks, learners: Sequence[Learner], summary: Any) -> str:
    """The matrix of scores of every learner that goes through the sequence."""
    names = [tasks.run.tasks[number].name for number in tasks.run.sequence]
    lines = []
    for learner in learners:
        if learner.alone or learner.joint:
            continue
        scores = summary[f"{learner.title}_matrix"].mean(0)
        head = " | ".join(f"after {name}" for name in names)
        lines += [f"| {learner.title} | {head} |", f"| --- |{' --- |' * len(names)}"]
        for name, row in zip(names, scores, strict=True):
            cells = ["" if np.isnan(value) else f"{value:.1f}" for value in row]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def costs(
    tasks: Tasks, learners: Sequence[Learner], results: Results, seconds: dict[str, float]
) -> str:
    """Parameters of a task's planner and seconds of its training.

    Args:
        tasks: the run's tasks.
        learners: all that were trained.
        results: of the run's stages.
        seconds: learner -> seconds of its training.

    Returns:
        A table in Markdown.
    """
    lines = ["| learner | numbers a task plans with | of these its own | training, s a task |"]
    lines.append("| --- | --- | --- | --- |")
    count = len(tasks.run.tasks)
    for learner in learners:
        bank = results[learner.title] if learner.joint else learner.bank(results, count - 1)
        one = jax.tree.map(lambda leaf: np.asarray(leaf)[0], (bank.params, bank.owner))
        whole, own = parameters(learner, *one)
        spent = seconds.get(learner.title)
        timed = "" if spent is None else f"{spent / count:.1f}"
        lines.append(f"| {learner.title} | {whole:,} | {own:,} | {timed} |")
    return "\n".join([*lines, ""])


def parameters(learner: Learner, params: Any, owner: Any) -> tuple[int, int]:
    """Numbers that the network and inverse model of one task have, and how many it alone has."""
    config = learner.planner
    whole = own = 0
    leaves = jax.tree_util.tree_leaves_with_path(params)
    owners = jax.tree.leaves(owner, is_leaf=lambda leaf: leaf is None)
    for (path, leaf), labels in zip(leaves, owners, strict=True):
        of = kind(config, path_name(path))
        size = leaf.size // (config.tasks if of == "private" else 1)
        if of == "private":
            own += size
        elif labels is not None:
            size = int((np.asarray(labels) == 0).sum())
            own += size
        elif config.tasks == 1:
            own += size
        whole += size
    return whole, own


def spaces_table(tasks: Tasks, results: Results) -> str:
    """A row a task: how well its rows are restored, codes used, actions from true states."""
    run = tasks.run
    lines = [
        "| task | data | states: error | codes used | actions: error | codes used | target |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for number in run.sequence:
        task = run.tasks[number]
        found: Aligned = results[f"codes_{task.name}"]
        cells = [task.name, task.quality or task.generate or ""]
        for side in SIDES:
            cells.append(f"{found.quality[f'{side}_error'].mean():.4f}")
            used = found.quality.get(f"{side}_codes_used")
            cells.append("" if used is None else f"{used.mean():.0%}")
        lines.append(f"| {' | '.join(cells)} | {found.target:.2f} |")
    if len(run.tasks) > 1:
        each = [f"{side} {differences(tasks, results, side).mean():.2f}" for side in SIDES]
        lines += ["", f"Mean distance of aligned vectors of two tasks: {', '.join(each)}."]
    return "\n".join([*lines, ""])


def differences(tasks: Tasks, results: Results, side: str) -> np.ndarray:
    """[pairs of tasks] distances of their aligned vectors, of the first seed."""
    rows = []
    for number in tasks.run.sequence:
        found: Aligned = results[f"codes_{tasks.run.tasks[number].name}"]
        own = found.data._replace(
            states=found.data.states[0],
            actions=found.data.actions[0],
            state_table=None if found.data.state_table is None else found.data.state_table[0],
            action_table=None if found.data.action_table is None else found.data.action_table[0],
        )
        rows.append(_first_rows(own, side))
    each = [
        float(_difference(jax.random.key(0), rows[i], rows[j]))
        for i in range(len(rows))
        for j in range(i)
    ]
    return np.array(each or [0.0])


_difference = jax.jit(feature_difference)


@partial(jax.jit, static_argnums=1)
def _first_rows(data: TaskData, side: str) -> jax.Array:
    """[DIFFERENCE_ROWS, channels] aligned rows, evenly over a task's windows."""
    index = jnp.linspace(0, data.count - 1, DIFFERENCE_ROWS).astype(jnp.int32)
    return getattr(gather(data, index, 1), side)[:, 0]


def behavior_scores(tasks: Tasks, results: Results, name: str) -> tuple[float, float]:
    """Mean scores of the lower and the upper half of the data's episodes.

    NaN where episodes are cut short when they are played: the data's are on another scale.
    """
    if tasks.cap(tasks.find(name)) is not None:
        return float("nan"), float("nan")
    found: Aligned = results[f"codes_{name}"]
    scores = np.sort(np.asarray(tasks.score(tasks.find(name), found.episode_returns)))
    half = max(1, len(scores) // 2)
    return float(scores[:half].mean()), float(scores[-half:].mean())


def training_seconds(path: Path, tasks: Tasks, learners: Sequence[Learner]) -> dict[str, float]:
    """Seconds of training of all tasks by learner, without compiling, from the run's record."""
    record = path / "metrics.jsonl"
    lines = record.read_text(encoding="utf-8").splitlines() if record.is_file() else []
    rows = [json.loads(line) for line in lines]
    found: dict[str, float] = {}
    for learner in learners:
        places = [0] if learner.joint else range(len(tasks.run.tasks))
        stages = {
            learner.stage(place, part, pruned)
            for place in places
            for part in range(tasks.run.curve)
            for pruned in (False, True)  # before and after, where weights are pruned in between
        }
        before: dict[str, int] = {}
        for row in rows:
            if row["stage"] in stages and "steps_per_second" in row:
                done = row["step"] - before.get(row["stage"], 0)
                before[row["stage"]] = row["step"]
                found[learner.title] = (
                    found.get(learner.title, 0.0) + done / row["steps_per_second"]
                )
    return found
