"""`python -m jaxmethods.obd SYN.npz --environment hopper`: students of a saved set, at work.

Trains fresh students on the set as its card says, lets them play, and prints the mean and the
standard deviation over students of their returns and normalised scores. With
`--table architectures` or `--table optimizers` it prints one of the paper's cross tables.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

from jaxmethods.errors import UserError
from jaxmethods.keys import named
from jaxmethods.obd.config import OBDConfig
from jaxmethods.obd.distilled import load
from jaxmethods.obd.evaluate import (
    EvaluationConfig,
    check_environment,
    check_spaces,
    player,
    trained_students,
)
from jaxmethods.obd.mujoco_returns import check_mujoco, evaluate_returns
from jaxmethods.obd.scores import REFERENCE, normalized_score, score_name, summarise
from jaxmethods.obd.tables import TABLES


@dataclass
class Options:
    """Judge a distilled set."""

    set: tyro.conf.Positional[Path]
    """SYN.npz, its card SYN.json beside it."""
    environment: str
    """hopper, halfcheetah, walker2d (MuJoCo), pendulum or brax:TASK."""
    students: int = 10
    episodes: int = 10
    seed: int = 0
    table: Literal["architectures", "optimizers"] | None = None
    """Students of every architecture or optimizer in place of the card's own (MuJoCo only)."""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 wrong input."""
    options = tyro.cli(Options, args=arguments, prog="python -m jaxmethods.obd")
    try:
        if options.table is not None:
            print_table(options, options.table)
            return 0
        scores = judged(options)
    except (UserError, ValueError) as error:
        print(f"jaxmethods: {error}", file=sys.stderr)
        return 2
    means = scores.mean(1)
    measures = {score_name(options.environment): means}
    if options.environment in REFERENCE:
        low, high = REFERENCE[options.environment]
        measures["return"] = low + means * (high - low) / 100
    for name, values in measures.items():
        print(f"{name}: {values.mean():.1f} ± {values.std():.1f} ({len(values)} students)")
    return 0


def judged(options: Options) -> np.ndarray:
    """Normalised scores [students, episodes]."""
    evaluation = EvaluationConfig(
        environment=options.environment, students=options.students, episodes=options.episodes
    )
    check_environment(evaluation)
    found = load(options.set)
    check_spaces(options.environment, found.syn.states.shape[1], found.syn.actions.shape[1])
    config = OBDConfig.model_validate(found.card["distillation"])
    play: Any = player(evaluation, config)
    if play is None:
        raise ValueError("MuJoCo is not installed; pip install 'jaxmethods[rl]'")
    # Not the keys that the set was distilled with, if it had the same seed.
    train_key, play_key = jax.random.split(named(jax.random.key(options.seed), "students"))
    params = trained_students(config, options.students, train_key, found.syn)
    return np.asarray(play(params, found.norm, play_key), float)


def print_table(options: Options, table: str) -> None:
    """A Markdown table of normalised scores: mean ± standard error over students."""
    check_mujoco(options.environment)
    found = load(options.set)
    check_spaces(options.environment, found.syn.states.shape[1], found.syn.actions.shape[1])
    key = named(jax.random.key(options.seed), "table")
    print(f"| {table} | normalised score |\n| --- | --- |")
    for name, params, residual in TABLES[table](key, found.syn, options.students):
        returns = evaluate_returns(
            options.environment, params, found.norm, options.episodes, residual=residual
        )
        row = summarise(normalized_score(options.environment, returns))
        print(f"| {name} | {row.mean:.1f} ± {row.error:.1f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
