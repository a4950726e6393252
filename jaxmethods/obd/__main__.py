"""`python -m jaxmethods.obd SYN.npz --environment hopper`: students of a saved set, at work.

Trains fresh students on the set as its card says, lets them play, and prints the mean and the
standard deviation over students of their returns and normalised scores.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from jaxmethods.errors import UserError
from jaxmethods.obd.config import OBDConfig
from jaxmethods.obd.distilled import load
from jaxmethods.obd.evaluate import EvaluationConfig, check_environment, player, trained_students
from jaxmethods.obd.scores import reference_returns


@dataclass
class Options:
    """Judge a distilled set."""

    set: tyro.conf.Positional[Path]
    """SYN.npz, its card SYN.json beside it."""
    environment: str
    """hopper, halfcheetah, walker2d (MuJoCo) or pendulum."""
    students: int = 10
    episodes: int = 10
    seed: int = 0


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 wrong input."""
    options = tyro.cli(Options, args=arguments, prog="python -m jaxmethods.obd")
    try:
        scores = judged(options)
    except (UserError, ValueError) as error:
        print(f"jaxmethods: {error}", file=sys.stderr)
        return 2
    low, high = reference_returns(options.environment)
    means = scores.mean(1)
    returns = low + means * (high - low) / 100
    for name, values in (("normalised score", means), ("return", returns)):
        print(f"{name}: {values.mean():.1f} ± {values.std():.1f} ({len(values)} students)")
    return 0


def judged(options: Options) -> np.ndarray:
    """Normalised scores [students, episodes]."""
    evaluation = EvaluationConfig(
        environment=options.environment, students=options.students, episodes=options.episodes
    )
    check_environment(evaluation)
    found = load(options.set)
    config = OBDConfig.model_validate(found.card["distillation"])
    play: Any = player(evaluation, config)
    if play is None:
        raise ValueError("MuJoCo is not installed; pip install 'jaxmethods[rl]'")
    train_key, play_key = jax.random.split(jax.random.key(options.seed))
    params = trained_students(config, options.students, train_key, found.syn)
    return np.asarray(play(params, found.norm, play_key), float)


if __name__ == "__main__":
    sys.exit(main())
