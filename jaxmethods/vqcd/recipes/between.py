"""What baselines do between two tasks: estimate importances, imagine windows, prune.

Each is a stage behind the one that trained the task, whose result the next task's stage is fed.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.layout import seed_axes
from jaxmethods.stages import Arrays, Compute, Part, Place, Results
from jaxmethods.vqcd import Bank, Feed, PlannerConfig, TaskData, baselines, task_weights
from jaxmethods.vqcd.bank import take
from jaxmethods.vqcd.data.task_data import gather
from jaxmethods.vqcd.recipes.spaces import OWN_OF_SEEDS
from jaxmethods.vqcd.types import Penalty

IMPORTANCE = ("ewc", "l2", "mas")
"""Learners that are pulled to earlier weights."""


def penalty_stage(learner: Any, place: int) -> Compute:
    """The pull around the weights after a task; the result is a `Penalty` [seeds]."""
    run, number = learner.run, learner.run.sequence[place]

    def compute(results: Results) -> Arrays:
        bank, data = learner.bank(results, place), learner.data_of(results, number)
        before = learner.penalty(results, place)
        keys = learner.keys(f"importance {run.tasks[number].name}")
        found = _importance(
            learner.planner,
            learner.kind,
            run.penalty_batches,
            bank,
            data,
            jnp.int32(learner.task(number)),
            before,
            keys,
        )
        leaves = jax.tree.leaves(found)
        return {f"leaf_{place:04d}": np.asarray(leaf) for place, leaf in enumerate(leaves)}

    def parts(results: Results, where: Place) -> list[Part]:
        del where
        return [Part("penalty", partial(compute, results))]

    def finish(found: Any) -> Penalty:
        like = jax.eval_shape(lambda: take(learner.planner, learner.initial().params, jnp.int32(0)))
        structure = jax.tree.structure(Penalty(like, like))
        return jax.tree.unflatten(structure, [found[0][name] for name in sorted(found[0])])

    return Compute(f"penalty_{learner.stage(place, learner.run.curve - 1)}", parts, finish)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _importance(
    config: PlannerConfig,
    kind: Any,
    batches: int,
    bank: Bank,
    data: TaskData,
    task: jax.Array,
    before: Penalty | None,
    keys: jax.Array,
) -> Penalty:
    def one(bank: Bank, data: TaskData, before: Penalty | None, key: jax.Array) -> Penalty:
        feed = Feed(data, task, None, None, before)
        return baselines.consolidate(config, bank, feed, key, kind, batches)

    return jax.vmap(one, (0, seed_axes(data, OWN_OF_SEEDS), 0, 0))(bank, data, before, keys)


def imagined_stage(learner: Any, place: int) -> Compute:
    """A task's windows as the planner imagines them; the result is `TaskData` [seeds]."""
    run, number = learner.run, learner.run.sequence[place]

    def compute(results: Results) -> Arrays:
        data, known = learner.data_of(results, number), results[f"codes_{run.tasks[number].name}"]
        count = max(2 * learner.planner.batch, round(int(data.count) * run.replay_share))
        found = _imagined(
            learner.planner,
            count,
            learner.bank(results, place),
            data,
            # Not the padded data's, whose rows of zeros are none.
            (jnp.asarray(known.low), jnp.asarray(known.high)),
            jnp.int32(learner.task(number)),
            jnp.int32(number),
            learner.keys(f"imagined {run.tasks[number].name}"),
        )
        return {name: np.asarray(x) for name, x in found._asdict().items() if x is not None}

    def parts(results: Results, where: Place) -> list[Part]:
        del where
        return [Part("windows", partial(compute, results))]

    def finish(found: Any) -> TaskData:
        return TaskData(state_table=None, action_table=None, **found[0])

    return Compute(f"imagined_{learner.stage(place, learner.run.curve - 1)}", parts, finish)


@partial(jax.jit, static_argnums=(0, 1))
def _imagined(
    config: PlannerConfig,
    count: int,
    bank: Bank,
    data: TaskData,
    bounds: tuple[jax.Array, jax.Array],
    task: jax.Array,
    number: jax.Array,
    keys: jax.Array,
) -> TaskData:
    """[seeds, ...] windows of task `number`, by the weights that are owned as `task`'s."""

    def one(bank: Bank, data: TaskData, bounds: tuple, key: jax.Array) -> TaskData:
        draw_key, plan_key = jax.random.split(key)
        index = jax.random.randint(draw_key, (count,), 0, data.count)
        windows = gather(data, index, 1)
        low, high = bounds
        channels = config.network.channels
        return baselines.generated_windows(
            config,
            task_weights(config, bank, task),
            windows.states[:, 0],
            windows.returns,
            number,
            (low[:channels], high[:channels]),
            plan_key,
        )

    return jax.vmap(one, (0, seed_axes(data, OWN_OF_SEEDS), 0, 0))(bank, data, bounds, keys)
