"""A small stochastic method and a two-stage pipeline of it, to test the loop with.

Run as a program (`python -m tests.training.toy FOLDER [--resume]`) it trains slowly enough
to be killed half-way.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.config import LoopConfig, TrainingRunConfig
from jaxmethods.errors import UserError
from jaxmethods.layout import Layout, Rule
from jaxmethods.method import Method
from jaxmethods.records.progress import Progress
from jaxmethods.records.run_folder import RunFolder
from jaxmethods.stages import Evaluation, Recipe, Train
from jaxmethods.training import runner


class State(NamedTuple):
    key: jax.Array
    weights: jax.Array
    count: jax.Array


def noisy_descent(rate: float = 0.1, nan_at: int = -1) -> Method:
    """Gradient descent on |w - batch|^2 with noise from the state's key."""

    def init(key, batch):
        key, init_key = jax.random.split(key)
        return State(key, jax.random.normal(init_key, batch.shape), jnp.int32(0))

    def step(state, batch):
        key, noise_key = jax.random.split(state.key)
        noise = 0.1 * jax.random.normal(noise_key, batch.shape)
        error = state.weights - batch + noise
        loss = jnp.sum(error**2)
        loss = jnp.where(state.count + 1 == nan_at, jnp.nan, loss)
        weights = state.weights - rate * error
        return State(key, weights, state.count + 1), {"loss": loss, "count": state.count}

    return Method(init, step)


def distance(state, batch, key):
    """The evaluation: how far the weights are from a fixed point, with noise from the key."""
    return {"score": -jnp.sum(state.weights**2) + 0.01 * jax.random.normal(key)}


def recipe(
    first: int = 23,
    second: int = 17,
    method: Method | None = None,
    shape: tuple[int, ...] = (3,),
    rules: Sequence[Rule] = (),
) -> Recipe:
    """The second stage starts from what the first one found; `shape` is that of the weights."""
    method = method or noisy_descent()

    def target(results):
        return jnp.arange(float(math.prod(shape))).reshape(shape)

    def found(results):
        return results["first"].weights.mean(0)

    layout = Layout(state=rules)
    scored = Evaluation(distance, score="score")
    return Recipe(
        [
            Train("first", method, first, target, evaluation=scored, layout=layout, main=True),
            Train("second", method, second, found, evaluation=Evaluation(distance), layout=layout),
        ]
    )


def config(**changes) -> TrainingRunConfig:
    training = LoopConfig(log_every=4, evaluate_every=8, checkpoint_every=8)
    return TrainingRunConfig(method="toy", training=training, **changes)


class SlowProgress(Progress):
    """Gives a killer time to strike between chunks, and a stage time to be seen."""

    def __init__(self):
        super().__init__(quiet=True)

    def row(self, row):
        print(row["stage"], row["step"], flush=True)
        time.sleep(0.15)


def main() -> int:
    folder, resume = RunFolder(Path(sys.argv[1])), "--resume" in sys.argv
    try:
        runner.run(recipe(60, 30), config(seeds=2), folder, resume, SlowProgress())
    except UserError as error:
        print(error, file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
