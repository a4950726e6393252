"""VQ-CD on the command line: a sequence of offline tasks, learned one after another.

For every task in turn: its modules are trained (`align_TASK`), its rows encoded (`codes_TASK`), and
every learner goes on from what its last task left (`LEARNER_TASK`) and is judged on all tasks seen
so far (`score_LEARNER_TASK`). No stage opens the data of a later task. At the end the matrices of
scores become final performance, forgetting and forward transfer (`summary`).

Hu et al., VQ-CD, arXiv 2410.15698, algorithm 1.
"""

from __future__ import annotations

from functools import partial

import jax

from jaxmethods.numerics.keys import named
from jaxmethods.stages import Compute, Diagnosable, Recipe, Results, Train
from jaxmethods.vqcd import task_weights
from jaxmethods.vqcd.config import Run
from jaxmethods.vqcd.recipes.between import IMPORTANCE, imagined_stage, penalty_stage
from jaxmethods.vqcd.recipes.diagnosis import diagnosable
from jaxmethods.vqcd.recipes.learners import Learner
from jaxmethods.vqcd.recipes.play import policy_config
from jaxmethods.vqcd.recipes.report import report
from jaxmethods.vqcd.recipes.scoring import score_stage
from jaxmethods.vqcd.recipes.spaces import align_stage, codes_stage, trained_sides
from jaxmethods.vqcd.recipes.summary import headline, summary_stage
from jaxmethods.vqcd.recipes.tasks import Tasks

__all__ = ["Run", "recipe"]


def recipe(run: Run) -> Recipe:
    """All stages, task by task.

    Raises:
        DataError: a file is missing, or the first task's cannot be used; later ones are opened in
            their turn.
        ValueError: sizes that don't fit, an unknown environment.
        MissingExtraError: a simulator is not installed.
    """
    run = _with_sizes(run)
    tasks = Tasks(run)
    learners = [Learner(run, config) for config in run.learners]
    for learner in learners:
        policy_config(run, learner.planner)  # refuses what doesn't fit
    tasks.arrays(run.sequence[0])
    trains = bool(trained_sides(run))
    stages: list[Train | Compute] = []
    if trains and run.alignment.together:
        stages.append(align_stage(run, tasks, range(len(run.tasks))))
    for place, number in enumerate(run.sequence):
        if trains and not run.alignment.together:
            stages.append(align_stage(run, tasks, [number]))
        stages.append(codes_stage(run, tasks, number))
        for learner in learners:
            if learner.joint:
                continue
            for part in range(run.curve):
                stages.append(learner.train_stage(place, part))
                if learner.kind == "packnet":
                    stages.append(learner.kept_stage(place))
                stages.append(score_stage(tasks, learner, place, part))
            if place == len(run.sequence) - 1:
                continue
            if learner.kind in IMPORTANCE:
                stages.append(penalty_stage(learner, place))
            if learner.kind == "generative_replay":
                stages.append(imagined_stage(learner, place))
    for learner in learners:
        if learner.joint:
            stages += [learner.joint_stage(), score_stage(tasks, learner, len(run.tasks) - 1)]
    stages.append(summary_stage(tasks, learners))
    reads = [stage.name for stage in stages]
    return Recipe(
        stages,
        partial(report, tasks, learners),
        reads,
        headline(tasks, learners),
        diagnosable=partial(diagnosed, run, learners[0]),
    )


def diagnosed(run: Run, learner: Learner, results: Results, seed: int) -> Diagnosable:
    """The first learner's network for the task that it learned last.

    Args:
        run: the run's config.
        learner: whose.
        results: of the run's stages.
        seed: index into the run's seeds.

    Returns:
        A model and a task's windows.
    """
    number = run.sequence[-1]
    bank = jax.tree.map(
        lambda leaf: leaf[seed], learner.bank(results, len(run.tasks) - 1)._replace(key=None)
    )
    data = learner.data_of_seed(results, number, seed)
    weights = task_weights(learner.planner, bank, learner.task(number))
    key = named(jax.random.key(run.seed + seed), "diagnosis")
    return diagnosable(learner.planner, weights.network, weights.inverse, data, key)


def _with_sizes(run: Run) -> Run:
    """The run with the size of the common space of `pad` and `none`: that of the widest task."""
    changes = {}
    for side, place in (("states", 0), ("actions", 1)):
        config = getattr(run.alignment, side)
        if config.trained or config.padded_size is not None:
            continue
        sizes = [Tasks(run).sizes(number) for number in range(len(run.tasks))]
        known = [size[place] for size in sizes if size is not None]
        if len(known) < len(sizes):
            raise ValueError(
                f"alignment.{side}.padded_size: expected a size where a task has no environment"
            )
        changes[side] = config.model_copy(update={"padded_size": max(known)})
    return run.model_copy(update={"alignment": run.alignment.model_copy(update=changes)})
