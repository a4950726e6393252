"""Stages that judge a learner after a task: all tasks seen so far are planned for and played.

Keys of playing are a task's and a seed's own, the same after every task and for every learner, so
that what changed is the weights' doing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.layout import seed_axes
from jaxmethods.stages import Arrays, Compute, Part, Place, Results
from jaxmethods.vqcd import (
    Bank,
    PlannerConfig,
    PolicyConfig,
    TaskSpace,
    TaskWeights,
    act,
    begin,
    plan,
    task_weights,
)
from jaxmethods.vqcd.inverse_dynamics import inverse_dynamics
from jaxmethods.vqcd.policy import align_states
from jaxmethods.vqcd.recipes.learners import Learner, seed_keys
from jaxmethods.vqcd.recipes.play import Played, play, policy_config
from jaxmethods.vqcd.recipes.spaces import OWN_OF_SEEDS, Aligned, space_axes, space_of
from jaxmethods.vqcd.recipes.tasks import Tasks
from jaxmethods.vqcd.spaces import alignment
from jaxmethods.vqcd.types import TaskData


class Judged(NamedTuple):
    """What was found out about a task with a learner's weights; leaves [seeds, ...]."""

    digest: np.ndarray
    """[seeds, 32] uint8 SHA-256 of the task's weights."""
    probe_plans: np.ndarray
    """[seeds, PROBES, T, C] plans from the task's probes with fixed keys."""
    r2: np.ndarray | None
    """[seeds] of normalized actions that follow from true pairs of states, on windows held out;
    None where actions are diffused."""
    r2_shuffled: np.ndarray | None
    """[seeds] the same with the second state of another window."""
    played: Played | None
    """None where the task has no environment."""


def score_name(stage: str) -> str:
    """The stage that judges what the training stage `stage` found."""
    return f"score_{stage}"


def score_stage(tasks: Tasks, learner: Learner, place: int, part: int | None = None) -> Compute:
    """Judges a learner after the task at a place of the sequence.

    Args:
        tasks: the run's tasks.
        learner: who is judged.
        place: in the sequence.
        part: None: at the task's end, on all tasks seen so far (of learners of one task alone, and
            within its training, on this one only).

    Returns:
        A stage with the result task's name -> `Judged`.
    """
    run = tasks.run
    own = run.sequence[place]
    within = part is not None and part < run.curve - 1
    seen = [own] if learner.alone or within else list(run.sequence[: place + 1])
    if learner.joint:
        seen = list(run.sequence)
    config = policy_config(run, learner.planner)
    stage = learner.stage(place, run.curve - 1 if part is None else part)

    def parts(results: Results, where: Place) -> list[Part]:
        del where
        return [
            Part(
                run.tasks[number].name,
                partial(_judged, tasks, learner, config, place, part, number, results),
            )
            for number in seen
        ]

    def finish(found: Sequence[Arrays]) -> dict[str, Judged]:
        names = [run.tasks[number].name for number in seen]
        return {name: _from_arrays(one) for name, one in zip(names, found, strict=True)}

    return Compute(score_name(stage), parts, finish, partial(metrics, tasks))


def metrics(tasks: Tasks, found: dict[str, Judged]) -> dict[str, np.ndarray]:
    """[seeds] each: scores of tasks and their mean, and R2 of actions from true states."""
    named, scores = {}, []
    for name, judged in found.items():
        if judged.played is not None:
            scores.append(mean_scores(tasks, name, judged))
            named[f"score_{name}"] = scores[-1]
        if judged.r2 is not None and judged.r2_shuffled is not None:
            named[f"r2_{name}"] = judged.r2
            named[f"r2_shuffled_{name}"] = judged.r2_shuffled
    return ({"score": np.mean(scores, 0)} if scores else {}) | named


def mean_scores(tasks: Tasks, name: str, judged: Judged) -> np.ndarray:
    """[seeds] scores of a task, means over episodes."""
    assert judged.played is not None
    return np.asarray(tasks.score(tasks.find(name), judged.played.returns.mean(1)))


def _judged(
    tasks: Tasks,
    learner: Learner,
    config: PolicyConfig,
    place: int,
    part: int | None,
    number: int,
    results: Results,
) -> Arrays:
    """A part: one task with the weights that the learner has now."""
    run, name = tasks.run, tasks.run.tasks[number].name
    bank = results[learner.title] if learner.joint else learner.bank(results, place, part)
    weights = _weights(learner.planner, bank, jnp.int32(learner.task(number)))
    digest = _digests(weights, run.seeds)
    if not run.evaluation.play_unchanged:
        before = _before(learner, place, name, results)
        if before is not None and np.array_equal(before.digest, digest):
            return _to_arrays(before)
    found: Aligned = results[f"codes_{name}"]
    space = space_of(run, results, number)
    target = float(number) if learner.planner.condition == "task" else found.target
    plans = _probe_plans(
        config,
        weights,
        space,
        jnp.float32(target),
        jnp.asarray(found.probes),
        seed_keys(run, f"probe {name}"),
    )
    r2 = shuffled = played = None
    if learner.planner.behavior == "inverse":
        r2, shuffled = _determination(config, weights, space, found)
    if run.tasks[number].environment is not None:
        played = play(tasks, config, number, weights, space, target, seed_keys(run, f"play {name}"))
    return _to_arrays(Judged(digest, np.asarray(plans), r2, shuffled, played))


def _before(learner: Learner, place: int, name: str, results: Results) -> Judged | None:
    """The last time the task was judged with this learner's weights."""
    for earlier in range(place - 1, -1, -1):
        stage = score_name(learner.stage(earlier, learner.run.curve - 1))
        if stage in results and name in results[stage]:
            return results[stage][name]
    return None


@partial(jax.jit, static_argnums=0)
def _weights(config: PlannerConfig, bank: Bank, task: jax.Array) -> TaskWeights:
    """[seeds] the weights that plans for a task are made with."""
    return jax.vmap(lambda one: task_weights(config, one, task))(bank)


def _digests(weights: TaskWeights, seeds: int) -> np.ndarray:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(weights)]
    found = []
    for seed in range(seeds):
        digest = hashlib.sha256()
        for leaf in leaves:
            digest.update(np.ascontiguousarray(leaf[seed]).tobytes())
        found.append(np.frombuffer(digest.digest(), np.uint8))
    return np.stack(found)


@partial(jax.jit, static_argnums=0)
def _probe_plans(
    config: PolicyConfig,
    weights: TaskWeights,
    space: TaskSpace,
    target: jax.Array,
    probes: jax.Array,
    keys: jax.Array,
) -> jax.Array:
    def of_seed(weights: TaskWeights, space: TaskSpace, key: jax.Array) -> jax.Array:
        if config.planner.behavior == "cloned":  # acts without plans
            return act(config, weights, space, target, probes, begin(config, len(probes)), key)[0]
        present = align_states(config, space, probes)
        return plan(config.planner, weights, space, target, present, key)

    return jax.vmap(of_seed, (0, space_axes(space), 0))(weights, space, keys)


def _determination(
    config: PolicyConfig, weights: TaskWeights, space: TaskSpace, found: Aligned
) -> tuple[np.ndarray, np.ndarray]:
    """R2 [seeds] of actions from true pairs of states, and with the second ones shuffled."""
    starts = found.held_starts
    other = np.random.default_rng(0).permutation(starts)
    both = np.asarray(
        _determinations(config, weights, space, found.data, found.held_actions, starts, other)
    )
    return both[:, 0], both[:, 1]


@partial(jax.jit, static_argnums=0)
def _determinations(
    config: PolicyConfig,
    weights: TaskWeights,
    space: TaskSpace,
    data: TaskData,
    true: jax.Array,
    starts: jax.Array,
    other: jax.Array,
) -> jax.Array:
    """[seeds, 2]"""

    def of_seed(weights: TaskWeights, space: TaskSpace, data: TaskData) -> jax.Array:
        def aligned(rows: jax.Array) -> jax.Array:
            values = data.states[rows]
            if data.state_table is None:
                return values
            return data.state_table[values.astype(jnp.int32)].reshape(len(rows), -1)  # [B, n d]

        def determination(after: jax.Array) -> jax.Array:
            latent = inverse_dynamics(weights.inverse, aligned(starts), aligned(after))
            size = true.shape[-1]
            actions = alignment.decode(space.action_module, config.actions, latent, size)
            spread = jnp.square(true - true.mean(0)).sum()
            return 1.0 - jnp.square(actions - true).sum() / spread

        return jnp.stack([determination(starts + 1), determination(other + 1)])

    return jax.vmap(of_seed, (0, space_axes(space), seed_axes(data, OWN_OF_SEEDS)))(
        weights, space, data
    )


def _to_arrays(judged: Judged) -> Arrays:
    """Flat names; what is None is left out."""
    named: dict[str, Any] = judged._asdict() | {"played": None}
    if judged.played is not None:
        named |= {f"played_{name}": value for name, value in judged.played._asdict().items()}
    return {name: np.asarray(value) for name, value in named.items() if value is not None}


def _from_arrays(arrays: Arrays) -> Judged:
    played = None
    if "played_returns" in arrays:
        played = Played(*(arrays[f"played_{name}"] for name in Played._fields))
    optional = arrays.get("r2"), arrays.get("r2_shuffled")
    return Judged(arrays["digest"], arrays["probe_plans"], *optional, played)
