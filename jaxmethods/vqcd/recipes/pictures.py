"""Pictures of plays: plans against what happened, and an episode of every task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.envs.control.arm.env import LENGTHS
from jaxmethods.plotting import INK, new_figure, write_png
from jaxmethods.stages import Results
from jaxmethods.vqcd.policy import decode_states
from jaxmethods.vqcd.recipes.figures import COLORS, SOFT
from jaxmethods.vqcd.recipes.learners import Learner
from jaxmethods.vqcd.recipes.play import policy_config
from jaxmethods.vqcd.recipes.spaces import of_seed, space_of
from jaxmethods.vqcd.recipes.summary import judged
from jaxmethods.vqcd.recipes.tasks import Tasks

_decode = jax.jit(decode_states, static_argnums=0)
PLANS = 12
"""Plans that are drawn along an episode."""
DIMENSIONS = 3
"""Dimensions of a state that are drawn."""


def draw_plays(tasks: Tasks, learner: Learner, results: Results, folder: Path) -> None:
    """`plans.png` and `episodes.png`: the first seed's first episode of every task at the end.

    Args:
        tasks: the run's tasks.
        learner: the one that plays.
        results: of the run's stages.
        folder: of the figures.
    """
    last = len(tasks.run.tasks) - 1
    episodes, plans = {}, {}
    config = policy_config(tasks.run, learner.planner)
    for row, number in enumerate(tasks.run.sequence):
        one = judged(tasks, learner, results, row, last)
        if one.played is None:
            continue
        name = tasks.run.tasks[number].name
        length = int(one.played.lengths[0, 0])
        episodes[name] = one.played.observations[0][:length]
        space = space_of(tasks.run, results, number)
        aligned = jnp.asarray(one.played.plans[0][:length, :, : config.planner.state_channels])
        plans[name] = np.asarray(_decode(config, of_seed(space, 0), aligned))
    if not episodes:
        return
    _draw_plans(episodes, plans, folder / "plans.png")
    environments = {task.name: task.environment for task in tasks.run.tasks}
    figure = new_figure(3.4 * len(episodes), 3.3)
    panels = figure.subplots(1, len(episodes), squeeze=False)[0]
    for panel, (name, seen) in zip(panels, episodes.items(), strict=True):
        environment = environments[name]
        draw = PICTURES.get("" if environment is None else environment.name, _curves)
        draw(panel, seen)
        panel.set_title(name)
    write_png(figure, folder / "episodes.png")


def _draw_plans(episodes: dict[str, Any], plans: dict[str, Any], path: Path) -> None:
    """Some dimensions of the state, and beside them plans along the way."""
    figure = new_figure(3.4 * len(episodes), 1.6 * DIMENSIONS + 0.6)
    panels = figure.subplots(DIMENSIONS, len(episodes), squeeze=False)
    for column, (name, seen) in enumerate(episodes.items()):
        # The dimensions that vary most along the episode.
        chosen = np.sort(np.argsort(-seen.std(0))[:DIMENSIONS])
        for row, dimension in enumerate(chosen):
            panel = panels[row, column]
            panel.plot(seen[:, dimension], color=SOFT, lw=1.6, label="happened")
            horizon = plans[name].shape[1]
            for start in np.linspace(0, max(len(seen) - horizon, 0), PLANS).astype(int):
                planned = plans[name][start, :, dimension]
                label = "planned" if start == 0 else None
                panel.plot(
                    start + np.arange(horizon), planned, color=COLORS[1], lw=1.0, label=label
                )
            panel.set_ylabel(f"state {dimension}", fontsize=8)
            panel.spines[["top", "right"]].set_visible(False)
        panels[0, column].set_title(name)
        panels[-1, column].set_xlabel("step")
    panels[0, 0].legend(frameon=False, fontsize=8)
    write_png(figure, path)


def _every(seen: np.ndarray, count: int = 14) -> np.ndarray:
    return seen[np.linspace(0, len(seen) - 1, min(count, len(seen))).astype(int)]


def _shade(place: int, count: int) -> Any:
    """From light to dark along an episode."""
    return (*(int(INK[i : i + 2], 16) / 255 for i in (1, 3, 5)), 0.15 + 0.85 * (place + 1) / count)


def _pendulum(panel: Any, seen: np.ndarray) -> None:
    shown = _every(seen)
    for place, (cosine, sine, _) in enumerate(shown):
        panel.plot([0, sine], [0, cosine], color=_shade(place, len(shown)), lw=2)
    panel.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal")


def _point_mass(panel: Any, seen: np.ndarray) -> None:
    panel.plot(seen[:, 0], seen[:, 1], color=INK, lw=1.5)
    panel.plot(*seen[0, :2], "o", color=SOFT, label="start")
    goal = seen[0, :2] + seen[0, 4:6]
    panel.plot(*goal, "*", ms=12, color=COLORS[1], label="goal")
    panel.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
    panel.legend(frameon=False, fontsize=8)


def _arm(panel: Any, seen: np.ndarray) -> None:
    shown = _every(seen)
    for place, row in enumerate(shown):
        links = np.stack([row[0:3], row[3:6]], -1) * np.array(LENGTHS)[:, None]
        ends = np.concatenate([np.zeros((1, 2)), np.cumsum(links, 0)])
        panel.plot(ends[:, 0], ends[:, 1], color=_shade(place, len(shown)), lw=2)
    panel.plot(*seen[0, 9:11], "*", ms=12, color=COLORS[1])
    panel.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal")


def _curves(panel: Any, seen: np.ndarray) -> None:
    for place, values in enumerate(seen.T):
        panel.plot(values, lw=0.8, color=COLORS[place % len(COLORS)])
    panel.set_xlabel("step")


PICTURES = {"pendulum": _pendulum, "point_mass": _point_mass, "arm": _arm}
"""Environment to what draws an episode [steps, ds] of it; others are drawn as curves."""
