"""Who learns a sequence: VQ-CD and what it is compared with, as settings of one planner.

A learner goes through the sequence with one bank of weights, learns every task alone from scratch
(`single`), or all tasks at once (`multitask`). Its stages are fed from aligned data and from its
own last stage, by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.config import merge
from jaxmethods.layout import Layout
from jaxmethods.method import Method, Metrics, Objective, made_once
from jaxmethods.numerics.keys import named
from jaxmethods.stages import Results, Train
from jaxmethods.vqcd import (
    Bank,
    Feed,
    PlannerConfig,
    State,
    TaskData,
    baselines,
    finish,
    initial_bank,
    join_tasks,
    last_windows,
    planner,
    stack_tasks,
)
from jaxmethods.vqcd.config import LearnerConfig, PlannerChoices, Run
from jaxmethods.vqcd.method import begin_task
from jaxmethods.vqcd.recipes.between import IMPORTANCE
from jaxmethods.vqcd.recipes.spaces import Aligned
from jaxmethods.vqcd.types import Penalty

DENSE = {"scope": "none", "rest": "shared", "inverse": "shared"}
"""One network that every task trains."""
SETTINGS: dict[str, dict[str, Any]] = {
    "vqcd": {},
    "finetune": DENSE,
    "multitask": DENSE,
    "single": DENSE,
    "single_quarter": DENSE,
    "cod": DENSE | {"condition": "task", "replay_every": 14},
    "cod_rcr": DENSE | {"replay_every": 14},
    "cod_lora": {
        "scope": "none",
        "rest": "freeze_after_first",
        "inverse": "per_task",
        "condition": "task",
        "adapter_rank": 64,
    },
    "rehearsal": DENSE | {"behavior": "cloned", "replay_every": 14},
    "ewc": DENSE | {"penalty": 1000.0},
    "l2": DENSE | {"penalty": 1.0},
    "mas": DENSE | {"penalty": 1.0},
    "packnet": {"sees": "earlier", "rest": "freeze_after_first"},
    "generative_replay": DENSE | {"condition": "task", "replay_every": 14},
}
"""Kind of learner -> what it changes in the planner's config."""
ALONE = ("single", "single_quarter")


class Planned(NamedTuple):
    """The batch of a planner's stage."""

    feed: Feed
    start: State
    """Where training begins or goes on, [seeds, ...]."""


class Learner:
    """One learner's stages."""

    def __init__(self, run: Run, config: LearnerConfig):
        self.run = run
        self.kind = config.kind
        self.title = config.title
        self.planner = planner_config(run, config)
        self.joint = self.kind == "multitask"
        self.alone = self.kind in ALONE
        self.method = made_once(_from_start, self.planner)
        self.initial = cache(self._initial)

    def task(self, number: int) -> int:
        """Whose weights a task's are in the bank."""
        if self.kind == "packnet":  # what is left to a task depends on its turn
            return self.run.sequence.index(number)
        return 0 if self.alone else number

    def owners(self) -> list[str]:
        """The tasks' names in the order of the numbers that weights are owned by."""
        numbers = sorted(self.run.sequence, key=self.task)
        return [self.run.tasks[number].name for number in numbers]

    def data_of(self, results: Results, number: int) -> TaskData:
        """A task's aligned windows; what depends on modules has an axis of seeds."""
        return _data_of(self.run, results, number)

    def data_of_seed(self, results: Results, number: int, seed: int) -> TaskData:
        """One seed's part of a task's aligned windows."""
        return _of_seed(_data_of(self.run, results, number), seed)

    def keys(self, name: str) -> jax.Array:
        """[seeds] keys for one purpose."""
        return seed_keys(self.run, f"{self.title} {name}")

    def penalty(self, results: Results, place: int) -> Penalty | None:
        """The pull [seeds] that the task at a place is trained with."""
        if self.kind not in IMPORTANCE or place == 0:
            return None
        return results[f"penalty_{self.stage(place - 1, self.run.curve - 1)}"]

    def stage(self, place: int, part: int = 0, pruned: bool = True) -> str:
        """The name of the stage that trains a part of the task at a place of the sequence.

        Args:
            place: of the task.
            part: of its training.
            pruned: where weights are pruned in between, the stage that trains what is kept.
        """
        if self.joint:
            return self.title
        name = f"{self.title}_{self.run.tasks[self.run.sequence[place]].name}"
        if self.kind == "packnet" and pruned:
            return f"{name}_kept"
        return name if self.run.curve == 1 else f"{name}_{part + 1}"

    def train_stage(self, place: int, part: int = 0) -> Train:
        """Trains part `part` of `curve` of the task at a place of the sequence.

        The result of the last part is a `Bank` [seeds], that of others a `State`.
        """
        last = part == self.run.curve - 1
        result = partial(_finished, self.planner) if last else _unfinished
        first, steps = self.run.steps * part, self.run.steps
        count = (first + steps) // self.run.curve - first // self.run.curve
        per_seed = ["^feed/data/(states|actions|state_table|action_table)$", "^start/"]
        if self._replays(place):
            per_seed.append("^feed/replay/")
        if self.kind in IMPORTANCE and place:
            per_seed.append("^feed/penalty/")
        return Train(
            self.stage(place, part, pruned=False),
            self.method,
            count,
            lambda results: self._data(results, place, part),
            result=result,
            layout=Layout(per_seed=per_seed),
        )

    def kept_stage(self, place: int) -> Train:
        """PackNet's second half: what is kept for the task is trained on without the rest."""
        number = self.run.sequence[place]
        stage = self.train_stage(place)

        def data(results: Results) -> Planned:
            batch = self._data(results, place, 0)
            trained = results[self.stage(place, pruned=False)]
            bank = _keep_largest(self.planner, trained, self.task(number))
            return batch._replace(start=self._begin(bank, self.task(number)))

        steps = max(1, self.run.steps // 2)
        return stage._replace(name=self.stage(place), steps=steps, data=data)

    def joint_stage(self) -> Train:
        """Trains all tasks at once, as long as the others in all."""

        def data(results: Results) -> Planned:
            each = [_data_of(self.run, results, number) for number in self.run.sequence]
            joined = [
                join_tasks([_of_seed(one, seed) for one in each]) for seed in range(self.run.seeds)
            ]
            start = self._begin(self.initial(), 0)
            feed = Feed(_stacked(joined), jnp.int32(0), None)
            return Planned(feed, start)

        return Train(
            self.title,
            self.method,
            self.run.steps * len(self.run.tasks),
            data,
            result=partial(_finished, self.planner),
            layout=Layout(per_seed=["^feed/data/", "^start/"]),
        )

    def bank(self, results: Results, place: int, part: int | None = None) -> Bank:
        """The bank [seeds] after a part of the task at a place of the sequence; None: the last."""
        part = self.run.curve - 1 if part is None else part
        found = results[self.stage(place, part)]
        return found if isinstance(found, Bank) else found.bank

    def _initial(self) -> Bank:
        """Every seed's first bank, the same whatever is learned first."""
        keys = seed_keys(self.run, "planner")
        return _initial_banks(keys, self.planner)

    def _begin(self, bank: Bank, task: int) -> State:
        return _begin(self.planner, bank, jnp.int32(task))

    def _data(self, results: Results, place: int, part: int) -> Planned:
        number = self.run.sequence[place]
        if part:
            start = results[self.stage(place, part - 1)]
        else:
            first = self.alone or place == 0
            bank = self.initial() if first else self.bank(results, place - 1)
            if self.kind == "packnet":
                bank = _claim_free(bank, self.task(number), first)
            start = self._begin(bank, self.task(number))
        replay = None
        if self._replays(place) and self.kind == "generative_replay":
            stages = [self.stage(other, self.run.curve - 1) for other in range(place)]
            replay = _together([results[f"imagined_{stage}"] for stage in stages])
        elif self._replays(place):
            earlier = [_data_of(self.run, results, other) for other in self.run.sequence[:place]]
            replay = _kept(earlier, self.run, self.planner.batch)
        task = jnp.int32(self.task(number))
        penalty = self.penalty(results, place)
        return Planned(
            Feed(_data_of(self.run, results, number), task, None, replay, penalty), start
        )

    def _replays(self, place: int) -> bool:
        return bool(self.planner.replay_every) and place > 0


def planner_config(run: Run, learner: LearnerConfig) -> PlannerConfig:
    """A learner's planner for the tasks and spaces of a run.

    Raises:
        ValueError: an unknown field, or one that doesn't fit.
    """
    spaces = run.alignment
    if learner.kind == "packnet" and run.curve > 1:
        raise ValueError(f"curve: expected 1 with packnet, got {run.curve}")
    values = run.planner.model_dump(exclude_unset=True)
    values = merge(merge(values, SETTINGS[learner.kind]), learner.model_extra or {})
    chosen = PlannerChoices.model_validate(values)
    if learner.kind == "generative_replay" and chosen.behavior != "inverse":
        raise ValueError(
            f"learners: {learner.title}: behavior: expected 'inverse', whose actions follow from "
            f"imagined states, got {chosen.behavior!r}"
        )
    network = chosen.network.model_dump(exclude_unset=True)
    network["channels"] = spaces.states.channels
    if chosen.behavior == "diffused":
        network["channels"] += spaces.actions.channels
    if learner.kind == "single_quarter":
        network |= {"dim": chosen.network.dim // 2, "hidden": chosen.network.hidden // 2}
    derived: dict[str, Any] = {
        "network": network,
        "tasks": 1 if learner.kind in ALONE else len(run.tasks),
        "action_channels": spaces.actions.channels,
    }
    if learner.kind in ALONE:
        derived["shares"] = ()
    return PlannerConfig.model_validate(values | derived)


def seed_keys(run: Run, name: str) -> jax.Array:
    """[seeds] keys for one purpose; those of a seed don't depend on the others."""
    seeds = jnp.arange(run.seeds) + run.seed
    return jax.vmap(lambda seed: named(jax.random.key(seed), name))(seeds)


def _from_start(config: PlannerConfig) -> Method:
    """The planner, begun from the state that its batch holds: all tasks share one program."""
    method = planner(config)

    def init(key: jax.Array, batch: Planned) -> State:
        del key
        return batch.start

    def step(state: State, batch: Planned) -> tuple[State, Metrics]:
        return method.step(state, batch.feed)

    def objective(state: State, batch: Planned) -> Objective:
        assert method.objective is not None
        return method.objective(state, batch.feed)

    return Method(init, step, objective)


def _finished(config: PlannerConfig, state: State, batch: Planned) -> Bank:
    del batch
    return finish(config, state)


def _unfinished(state: State, batch: Planned) -> State:
    del batch
    return state


# Compiled once for all tasks and learners of one config.
_begin = jax.jit(jax.vmap(begin_task, (None, 0, None)), static_argnums=0)
_keep_largest = jax.jit(jax.vmap(baselines.keep_largest, (None, 0, None)), static_argnums=(0, 2))
_initial_banks = jax.jit(jax.vmap(initial_bank, (0, None)), static_argnums=1)


@partial(jax.jit, static_argnums=2)
def _claim_free(bank: Bank, task: jax.Array | int, first: bool) -> Bank:
    """PackNet's banks [seeds] before a task, that of the first with nothing owned."""
    bank = baselines.nothing_owned(bank) if first else bank
    return baselines.claim_free(bank, task)


def _data_of(run: Run, results: Results, number: int) -> TaskData:
    found: Aligned = results[f"codes_{run.tasks[number].name}"]
    return found.data


def _of_seed(data: TaskData, seed: int) -> TaskData:
    """One seed's part of a task's data."""
    own = {
        name: None if getattr(data, name) is None else getattr(data, name)[seed]
        for name in ("states", "actions", "state_table", "action_table")
    }
    return data._replace(**own)


def _kept(earlier: Sequence[TaskData], run: Run, batch: int) -> TaskData:
    """The last windows of earlier tasks [seeds, tasks, ...]."""
    each = []
    for seed in range(run.seeds):
        kept = [last_windows(_of_seed(one, seed), run.replay_share, 2 * batch) for one in earlier]
        each.append(stack_tasks(kept))
    return _stacked(each)


def _together(each: Sequence[TaskData]) -> TaskData:
    """Imagined windows of earlier tasks [seeds, tasks, ...]."""
    seeds = len(each[0].returns)
    return _stacked(
        [
            stack_tasks([jax.tree.map(lambda leaf, s=seed: leaf[s], one) for one in each])
            for seed in range(seeds)
        ]
    )


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
