"""Meta-World's manipulation tasks: a host simulator for every episode, and data of its experts.

    episodes = MetaworldEpisodes("hammer-v3", count=10, seed=0)
    observations = episodes.reset()                        # [10, 39]
    observation, reward, done = episodes.step(3, action)   # of the fourth episode

The reward is 1 at the step at which the task counts as solved, which ends the episode, so that a
return is a success and a mean of returns a success rate, as in Continual World (Wolczyk et al.
2021, arXiv 2105.10919). Where objects and goals are is drawn anew for every episode.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxmethods.config import nearest
from jaxmethods.data.generated import NOISE, QUALITIES, RANDOM
from jaxmethods.data.offline import FlatDataset
from jaxmethods.errors import import_extra
from jaxmethods.offline_rl.mujoco_returns import quiet

METAWORLD = "metaworld:"
"""Before the name of one of Meta-World's tasks, as in "metaworld:hammer-v3"."""
SPACES = (39, 4)
"""Numbers of observations and of actions, the same of every task."""
STEPS = 200
"""Length of an episode in Continual World."""
PLACES = 50
"""Places of objects and goals that belong to a seed; more episodes begin with the first again."""

DECIMALS = 4
"""Observations are rounded to a tenth of a millimeter: what an expert leaves where it is varies by
1e-6, which normalized would be numbers like any, and thousands where a learner touches it."""


def check_metaworld(task: str) -> None:
    """Checks that a task can be played.

    Raises:
        ValueError: Meta-World has no such task.
        MissingExtraError: Meta-World is not installed.
    """
    known = import_extra("metaworld", "metaworld").ALL_V3_ENVIRONMENTS
    if task not in known:
        raise ValueError(f"unknown Meta-World task {task!r}{nearest(task, list(known))}")


def scripted_expert(task: str) -> Any:
    """Meta-World's own expert: `get_action(observation [39])` -> action [4], which can leave
    [-1, 1]."""
    check_metaworld(task)
    return import_extra("metaworld.policies", "metaworld").ENV_POLICY_MAP[task]()


class MetaworldEpisodes:
    """Episodes of one task, side by side."""

    limit = STEPS

    def __init__(self, task: str, count: int, seed: int) -> None:
        """Makes the simulators.

        Args:
            task: Meta-World's name, for instance "hammer-v3".
            count: of episodes.
            seed: of the places of objects and goals.

        Raises:
            ValueError: Meta-World has no such task.
            MissingExtraError: Meta-World is not installed.
        """
        check_metaworld(task)
        benchmark = import_extra("metaworld", "metaworld").MT1(task, seed=seed)
        make = benchmark.train_classes[task]
        self._simulators = [make() for _ in range(count)]
        for index, simulator in enumerate(self._simulators):
            simulator.set_task(benchmark.train_tasks[index % PLACES])

    def reset(self) -> np.ndarray:
        """[E, 39] float32: the first observations."""
        return np.stack([_observed(simulator.reset()[0]) for simulator in self._simulators])

    def step(self, index: int, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """Takes a step of one episode.

        Args:
            index: of the episode.
            action: [4] in [-1, 1].

        Returns:
            The observation [39] float32, the reward, and whether the episode has ended.
        """
        observation, _, _, _, told = self._simulators[index].step(action)
        solved = bool(told["success"])
        return _observed(observation), float(solved), solved


def _observed(observation: Any) -> np.ndarray:
    return np.round(np.asarray(observation), DECIMALS).astype(np.float32)


def metaworld_episodes(task: str, episodes: int, quality: str, seed: int) -> FlatDataset:
    """Lets the task's scripted expert play, disturbed as the controllers of `data.generated` are.

    Behaviors are those of the mixture, one after another: the expert's action plus noise, or now
    and then a uniform action in its place.

    Args:
        task: Meta-World's name, for instance "hammer-v3".
        episodes: of each behavior.
        quality: one of `generated.QUALITIES`.
        seed: of places, noise and uniform actions.

    Returns:
        Rows in float32; an episode ends (`terminals`) where the task is solved, with a reward of 1,
        or is cut off (`timeouts`) at Continual World's length.

    Raises:
        ValueError: Meta-World has no such task.
        MissingExtraError: Meta-World is not installed.
        KeyError: an unknown `quality`.
    """
    draw = np.random.default_rng(seed)
    behaviors = QUALITIES[quality]
    with quiet():
        places = MetaworldEpisodes(task, episodes * len(behaviors), seed)
        observations = places.reset()
        rows = [
            _episode(places, task, index, first, behaviors[index // episodes], draw)
            for index, first in enumerate(observations)
        ]
    return FlatDataset(*(np.concatenate(parts) for parts in zip(*rows, strict=True)))


def _episode(
    places: MetaworldEpisodes,
    task: str,
    index: int,
    observation: np.ndarray,
    behavior: int,
    draw: np.random.Generator,
) -> FlatDataset:
    """One episode of a behavior."""
    expert, seen, acted, rewards, done = scripted_expert(task), [observation], [], [], False
    while not done and len(acted) < places.limit:
        action = expert.get_action(seen[-1]) + NOISE[behavior] * draw.normal(size=4)
        if draw.random() < RANDOM[behavior]:
            action = draw.uniform(-1.0, 1.0, 4)
        action = np.clip(action, -1.0, 1.0).astype(np.float32)
        observation, reward, done = places.step(index, action)
        seen.append(observation)
        acted.append(action)
        rewards.append(reward)
    last = np.arange(len(acted)) == len(acted) - 1
    reached = np.stack(seen)
    return FlatDataset(
        reached[:-1],
        np.stack(acted),
        np.array(rewards, np.float32),
        last & done,
        last & (not done),
        reached[1:],
    )
