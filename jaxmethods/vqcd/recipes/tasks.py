"""A task's data and environment: read or generated when its turn comes, checked, cut into windows.

The file of a task is opened by the stage that is first fed from it, so not before the stages of the
tasks before it have ended. One task's arrays are held at a time.
"""

from __future__ import annotations

from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmethods.config import nearest
from jaxmethods.data.generated import mixed_quality
from jaxmethods.data.offline import DataError, FlatDataset, episode_ends, read_offline
from jaxmethods.envs.control.episodes import CONTROLLERS, episode_returns, make_control
from jaxmethods.numerics.keys import named
from jaxmethods.offline_rl import metaworld
from jaxmethods.offline_rl.config import PlayedEnvironmentConfig
from jaxmethods.offline_rl.metaworld import METAWORLD
from jaxmethods.offline_rl.mujoco_returns import MAX_STEPS, SPACES, check_mujoco
from jaxmethods.offline_rl.scores import REFERENCE, ReferenceReturns
from jaxmethods.vqcd import Statistics, returns_to_go, statistics, window_starts
from jaxmethods.vqcd.config import Run, TaskConfig
from jaxmethods.vqcd.data.windows import min_max

REFERENCE_EPISODES = 200
"""Episodes of uniform actions, and of the controller, that set the scale of scores where the
returns of an environment, with its arguments, aren't known."""


class TaskArrays(NamedTuple):
    """One task's episodes on the host, raw."""

    states: np.ndarray
    """[N, ds] float32"""
    actions: np.ndarray
    """[N, da] float32"""
    ends: np.ndarray
    """[E] exclusive last rows of the episodes."""
    held_out: np.ndarray
    """[E] bool: episodes that nothing is trained on."""
    returns_to_go: np.ndarray
    """[N] float32 in [0, 1]."""
    episode_returns: np.ndarray
    """[E] undiscounted."""
    state_norm: Statistics
    action_norm: Statistics

    def rows(self, held_out: bool) -> np.ndarray:
        """[N] bool: rows of the episodes that are held out, or of the others."""
        lengths = np.diff(self.ends, prepend=0)
        return np.repeat(self.held_out == held_out, lengths)

    def starts(self, horizon: int, held_out: bool) -> np.ndarray:
        """First rows of the windows of these episodes."""
        first, episode = window_starts(self.ends, horizon)
        return first[self.held_out[episode] == held_out]


class Tasks:
    """The tasks of a run."""

    def __init__(self, run: Run):
        """Nothing is opened but the environments, whose sizes and simulators are checked."""
        self.run = run
        self.environment = cache(self._environment)
        self.sizes = cache(self._sizes)
        self.reference = cache(self._reference)
        self.arrays = lru_cache(maxsize=1)(self._arrays)
        for number, task in enumerate(run.tasks):
            self.sizes(number)
            if task.path is not None and not task.path.exists():
                raise DataError(f"data {task.path}: no such file")

    def _environment(self, number: int) -> Any:
        """The environment in JAX; None where there is none, or it is played on the host."""
        config = self.run.tasks[number].environment
        return config.make() if config is not None and config.in_jax else None

    def _sizes(self, number: int) -> tuple[int, int] | None:
        """Observations and actions of the environment; None where the task has none."""
        config = self.run.tasks[number].environment
        if config is None:
            return None
        if not config.in_jax:
            if config.model_extra:
                raise ValueError(
                    f"{config.name}: unknown argument {next(iter(config.model_extra))!r}"
                )
            if config.name.startswith(METAWORLD):
                metaworld.check_metaworld(config.name.removeprefix(METAWORLD))
                return metaworld.SPACES
            check_mujoco(config.name)
            return SPACES[config.name]
        env = self.environment(number)
        return env.observation_spec.shape[0], env.action_spec.shape[0]

    def _reference(self, number: int) -> ReferenceReturns | None:
        """Returns that score 0 and 100; None where scores are returns."""
        task, config = self.run.tasks[number], self.run.tasks[number].environment
        if task.low is not None and task.high is not None:
            return ReferenceReturns(task.low, task.high)
        if config is None:
            return None
        if config.name.startswith(METAWORLD):  # a return is a success
            return ReferenceReturns(0.0, 1.0)
        cap = self.cap(number)
        if config.name not in CONTROLLERS:
            return REFERENCE.get(config.name) if cap is None else None
        if cap is not None:
            config = type(config).model_validate(config.model_dump() | {"time_limit": cap})
        # Known returns are of the environment as it is by default.
        own = repr(config.make()) == repr(make_control(config.name))
        known = REFERENCE.get(config.name) if own else None
        if known is not None:
            return known
        return measured_reference(config)  # pyright: ignore[reportArgumentType]

    def cap(self, number: int) -> int | None:
        """The steps that a played episode is cut to; None where the environment's own are played.

        What is returned by then is on no scale of whole episodes.
        """
        config, steps = self.run.tasks[number].environment, self.run.evaluation.steps
        if config is None or steps is None:
            return None
        env = self.environment(number)
        own = MAX_STEPS.get(config.name, metaworld.STEPS) if env is None else env.time_limit
        return steps if steps < own else None

    def score(self, number: int, returns: Any) -> Any:
        """Returns of any shape as scores: 0 at random, 100 an expert; else the returns."""
        reference = self.reference(number)
        return returns if reference is None else reference.score(returns)

    def _arrays(self, number: int) -> TaskArrays:
        task = self.run.tasks[number]
        arrays = task_arrays(self._flat(task, number), self.run, f"data of task {task.name}")
        self._check(number, arrays)
        return arrays

    def _flat(self, task: TaskConfig, number: int) -> FlatDataset:
        if task.path is not None:
            return read_offline(task.path)
        env, name = self.environment(number), task.environment
        assert name is not None
        if name.name.startswith(METAWORLD):
            own = name.name.removeprefix(METAWORLD)
            quality = str(task.generate)
            return metaworld.metaworld_episodes(own, task.episodes, quality, task.data_seed)
        key = named(jax.random.key(task.data_seed), f"data {name.name}")
        controller = CONTROLLERS[name.name](env)
        return mixed_quality(env, controller, key, task.episodes, str(task.generate))

    def _check(self, number: int, arrays: TaskArrays) -> None:
        task, own = self.run.tasks[number], (arrays.states.shape[1], arrays.actions.shape[1])
        expected = self.sizes(number)
        if expected is not None and expected != own:
            assert task.environment is not None
            raise DataError(
                f"task {task.name}: {task.environment.name} has {expected[0]} observations and "
                f"{expected[1]} actions, got data with {own[0]} and {own[1]}"
            )
        horizon, batch = self.run.planner.network.horizon, self.run.planner.batch
        windows = len(arrays.starts(horizon, False))
        if windows < batch:
            raise DataError(
                f"task {task.name}: expected at least a batch of {batch} windows of {horizon} rows "
                f"within episodes, got {windows}"
            )
        if self.run.alignment.held_out and not len(arrays.starts(horizon, True)):
            raise DataError(
                f"task {task.name}: expected windows in the episodes that are held out, got none; "
                "set alignment.held_out to 0"
            )

    def find(self, name: str) -> int:
        """The number of a task. Raises `ValueError` for an unknown name."""
        names = [task.name for task in self.run.tasks]
        if name not in names:
            raise ValueError(f"task: unknown task {name!r}{nearest(name, names)}")
        return names.index(name)


@cache
def measured_reference(config: PlayedEnvironmentConfig) -> ReferenceReturns | None:
    """Mean returns of uniform actions and of the scripted controller.

    Args:
        config: one of `CONTROLLERS`, with its arguments.

    Returns:
        What scores 0 and 100; None where the controller is no better.
    """
    env = config.make()
    controller, size = CONTROLLERS[config.name](env), env.action_spec.shape[0]

    def uniform(key: jax.Array, observation: jax.Array) -> jax.Array:
        return jax.random.uniform(key, (len(observation), size), minval=-1.0, maxval=1.0)

    def scripted(key: jax.Array, observation: jax.Array) -> jax.Array:
        del key
        return controller(observation)

    play = jax.jit(episode_returns, static_argnums=(0, 1, 3))
    low, high = (
        float(play(env, act, jax.random.key(0), REFERENCE_EPISODES).mean())
        for act in (uniform, scripted)
    )
    return ReferenceReturns(low, high) if high > low else None


@partial(jax.jit, static_argnums=2)
def _normalized_returns(rewards: jax.Array, last: jax.Array, discount: float) -> jax.Array:
    return min_max(returns_to_go(rewards, last, discount))


def task_arrays(flat: FlatDataset, run: Run, source: str) -> TaskArrays:
    """Episodes, returns and statistics of flat arrays.

    Raises:
        DataError: no row ends an episode, rows are in no order, or all episodes are held out.
    """
    config = run.alignment
    last = episode_ends(flat)
    if not last.any():
        raise DataError(
            f"{source}: timeouts: expected rows at which episodes end, by terminals or timeouts, "
            "got none"
        )
    rewards = np.where(flat.terminals, flat.rewards + config.termination_penalty, flat.rewards)
    last[-1] = True
    ends = np.flatnonzero(last) + 1
    to_go = _normalized_returns(rewards, last, config.discount)
    held_out = np.zeros(len(ends), bool)
    if config.held_out:
        # Evenly over the file, where behaviors often lie one after another.
        count = max(1, round(config.held_out * len(ends)))
        held_out[np.linspace(0, len(ends) - 1, count + 2)[1:-1].astype(int)] = True
    if held_out.all():
        raise DataError(
            f"{source}: timeouts: expected episodes beside those that are held out, got "
            f"{len(ends)} in all; set alignment.held_out to 0"
        )
    sums = np.add.reduceat(flat.rewards.astype(np.float64), np.append(0, ends[:-1]))
    trained = np.repeat(~held_out, np.diff(ends, prepend=0))
    return TaskArrays(
        flat.observations,
        flat.actions,
        ends,
        held_out,
        np.asarray(to_go),
        sums,
        statistics(flat.observations[trained], config.normalizer),
        statistics(flat.actions[trained], config.normalizer),
    )
