"""What a sequence comes to: matrices of scores, and what continual learners are judged by.

Row j of a matrix is the evaluated task, column i the task after whose training it is evaluated,
both in the order of learning.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmethods.stages import Arrays, Compute, Part, Place, Results
from jaxmethods.vqcd import metrics as measures
from jaxmethods.vqcd.recipes.learners import Learner
from jaxmethods.vqcd.recipes.scoring import Judged, mean_scores, score_name
from jaxmethods.vqcd.recipes.tasks import Tasks

SUMMARY = "summary"


def judged(tasks: Tasks, learner: Learner, results: Results, row: int, column: int) -> Judged:
    """What was found of one task after another was learned.

    Args:
        tasks: the run's tasks.
        learner: who is judged.
        results: of the run's stages.
        row: place of the task that is judged.
        column: place of the task after which it is.

    Returns:
        Leaves [seeds, ...].
    """
    name = tasks.run.tasks[tasks.run.sequence[row]].name
    return results[score_name(learner.stage(column, tasks.run.curve - 1))][name]


def matrix(tasks: Tasks, learner: Learner, results: Results) -> np.ndarray:
    """Scores [seeds, I, I]; NaN before a task's turn, and of tasks without an environment.

    A learner of single tasks has only a diagonal, of which every row is filled to the end; one of
    all tasks at once has only a last column.
    """
    run, count = tasks.run, len(tasks.run.tasks)
    found = np.full((run.seeds, count, count), np.nan)
    for row in range(count):
        name = run.tasks[run.sequence[row]].name
        for column in range(row, count):
            at = row if learner.alone else column
            if learner.joint and column < count - 1:
                continue
            one = judged(tasks, learner, results, row, at)
            if one.played is not None:
                found[:, row, column] = mean_scores(tasks, name, one)
    return found


def errors(tasks: Tasks, learner: Learner, results: Results) -> np.ndarray:
    """[seeds, I] standard errors over episodes of the scores at the end."""
    run, count = tasks.run, len(tasks.run.tasks)
    found = np.full((run.seeds, count), np.nan)
    for row in range(count):
        one = judged(tasks, learner, results, row, row if learner.alone else count - 1)
        if one.played is not None:
            scores = np.asarray(tasks.score(run.sequence[row], one.played.returns))
            episodes = scores.shape[1]
            if episodes > 1:
                found[:, row] = scores.std(1, ddof=1) / episodes**0.5
    return found


def curves(tasks: Tasks, learner: Learner, results: Results) -> np.ndarray:
    """[seeds, I, P] scores of every task along its own training."""
    run = tasks.run
    found = np.full((run.seeds, len(run.tasks), run.curve), np.nan)
    for place, number in enumerate(run.sequence):
        name = run.tasks[number].name
        for part in range(run.curve):
            one: Judged = results[score_name(learner.stage(place, part))][name]
            if one.played is not None:
                found[:, place, part] = mean_scores(tasks, name, one)
    return found


def plans_kept(tasks: Tasks, learner: Learner, results: Results) -> np.ndarray:
    """[seeds] bool: whether all tasks' last plans are, bit for bit, those right after the task."""
    count = len(tasks.run.tasks)
    kept = np.ones(tasks.run.seeds, bool)
    for row in range(count):
        then, now = (judged(tasks, learner, results, row, at) for at in (row, count - 1))
        same = (then.probe_plans == now.probe_plans).reshape(len(kept), -1).all(1)  # [seeds]
        kept &= same & (then.digest == now.digest).all(1)
    return kept


def summary_stage(tasks: Tasks, learners: Sequence[Learner]) -> Compute:
    """Numbers [seeds] by name, from the judgments of all learners."""

    def parts(results: Results, place: Place) -> list[Part]:
        del place
        return [Part(SUMMARY, partial(_summarized, tasks, learners, results))]

    return Compute(SUMMARY, parts, lambda found: found[0], _numbers)


def _numbers(found: Arrays) -> dict[str, np.ndarray]:
    """What of the summary is one number a seed, and is one."""
    return {
        name: values
        for name, values in found.items()
        if values.ndim == 1 and np.isfinite(values).all()
    }


def _summarized(tasks: Tasks, learners: Sequence[Learner], results: Results) -> Arrays:
    named: dict[str, Any] = {}
    curve = {}
    for learner in learners:
        title, scores = learner.title, matrix(tasks, learner, results)
        named[f"{title}_matrix"] = scores
        named[f"{title}_errors"] = errors(tasks, learner, results)
        named[f"{title}_final"] = np.asarray(measures.final_performance(jnp.asarray(scores)))
        if not learner.joint and tasks.run.curve > 1:
            curve[title] = curves(tasks, learner, results)
            named[f"{title}_curve"] = curve[title]
        if not learner.joint and not learner.alone:
            lost = np.asarray(measures.forgetting(jnp.asarray(scores)))
            named[f"{title}_forgetting"] = np.asarray(measures.mean_forgetting(jnp.asarray(scores)))
            named[f"{title}_lost"] = lost
            named[f"{title}_plans_kept"] = plans_kept(tasks, learner, results).astype(float)
    alone = next((x.title for x in learners if x.kind == "single"), None)
    for title, own in curve.items():
        if alone is not None and title != alone:
            # Scores of 100 are a success of 1.
            transfer = np.asarray(measures.forward_transfer(own / 100.0, curve[alone] / 100.0))
            known = np.isfinite(transfer)  # of tasks that learning alone leaves something to gain
            total = np.where(known, transfer, 0.0).sum(-1)
            named[f"{title}_transfer"] = transfer
            named[f"{title}_forward_transfer"] = np.where(
                known.any(-1), total / np.maximum(known.sum(-1), 1), np.nan
            )
    return named


def headline(tasks: Tasks, learners: Sequence[Learner]) -> list[str]:
    """Final performance of all learners, and the forgetting of those that can forget."""
    if any(task.environment is None for task in tasks.run.tasks):
        return []
    named = [f"{SUMMARY}/{learner.title}_final" for learner in learners]
    forgetful = [x for x in learners if not x.joint and not x.alone]
    return named + [f"{SUMMARY}/{learner.title}_forgetting" for learner in forgetful]
