"""`method: interpret_digits` on the command line: a network learns digits and is reported on.

The first stage trains a ReLU network on scikit-learn's 8 x 8 digits by gradient descent on random
batches, with the training monitor inside the jitted step; the second computes the report's rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.data.images import digit_tasks
from jaxmethods.interpret import trees
from jaxmethods.interpret.config import DigitsRun as Run
from jaxmethods.interpret.dynamics.monitor import Monitor, MonitorState, train_monitor
from jaxmethods.interpret.losses import cross_entropy
from jaxmethods.interpret.problem import Data, Problem, make_problem, mean_gradient
from jaxmethods.interpret.recipes.rows import STAGE, rows_stage, write_report
from jaxmethods.method import Method
from jaxmethods.stages import Evaluation, Recipe, Results, Train

CLASSES = 10


class Digits(NamedTuple):
    """All images as rows of pixels in [0, 1]."""

    train: Data
    test: Data


class State(NamedTuple):
    """What training carries."""

    params: Any
    key: jax.Array
    monitor: MonitorState


def network(params: Any, images: jax.Array) -> jax.Array:
    """Logits [N, 10] of rows of pixels [N, 64]."""
    x = images
    for w, b in params[:-1]:
        x = jax.nn.relu(x @ w + b)
    w, b = params[-1]
    return x @ w + b


def read_digits() -> Digits:
    """scikit-learn's digits, 1400 to learn and 397 held out."""
    (task,) = digit_tasks(["digits"], 8)

    def rows(split: Any) -> Data:
        # One of three equal channels, [n, 8, 8] -> [n, 64].
        pixels = np.asarray(split.images)[..., 0].reshape(len(split.labels), -1)
        return Data(pixels.astype(np.float32) / 255, np.asarray(split.labels, np.int32))

    return Digits(rows(task.train), rows(task.test))


def trainer(run: Run) -> Method:
    """Gradient descent on random batches, watched."""
    monitor = train_monitor(run.monitor_every)

    def init(key: jax.Array, digits: Digits) -> State:
        weights, watch, rest = jax.random.split(key, 3)
        sizes = (digits.train.inputs.shape[1], *run.hidden, CLASSES)
        params = initial_params(weights, sizes)
        start = _problem(params, jax.tree.map(lambda x: x[: run.batch], digits.train))
        return State(params, rest, monitor.init(watch, start))

    def step(state: State, digits: Digits) -> tuple[State, Mapping[str, jax.Array]]:
        return _step(run, monitor, state, digits)

    return Method(init, step)


def _step(
    run: Run, monitor: Monitor, state: State, digits: Digits
) -> tuple[State, Mapping[str, jax.Array]]:
    key, own = jax.random.split(state.key)
    rows = jax.random.randint(own, (run.batch,), 0, len(digits.train.targets))
    problem = _problem(state.params, jax.tree.map(lambda x: x[rows], digits.train))
    watched = monitor.update(state.monitor, problem)
    params = trees.axpy(-run.rate, mean_gradient(problem), state.params)
    row = watched.row
    metrics = {
        "loss": row.loss,
        "gradient_norm": row.gradient_norm,
        "sharpness": row.sharpness,
        "weight_norm": row.weight_norm,
        "gradient_noise": watched.trace,
    }
    return State(params, key, watched), metrics


def initial_params(key: jax.Array, sizes: tuple[int, ...]) -> list[tuple[jax.Array, jax.Array]]:
    """He's initialization of layers (W [in, out], b [out])."""
    params = []
    for number, (rows, columns) in enumerate(pairwise(sizes)):
        own = jax.random.fold_in(key, number)
        w = jax.random.normal(own, (rows, columns)) * (2 / rows) ** 0.5
        params.append((w, jnp.zeros(columns)))
    return params


def _problem(params: Any, data: Data) -> Problem:
    return make_problem(network, cross_entropy, params, data)


def recipe(run: Run) -> Recipe:
    """Learning, then a report."""
    digits = read_digits()

    def accuracy(state: State, digits: Digits, key: jax.Array) -> dict[str, jax.Array]:
        del key
        right = jnp.argmax(network(state.params, digits.test.inputs), 1) == digits.test.targets
        return {"accuracy": jnp.mean(right, dtype=jnp.float32)}

    learn = Train(
        "learn",
        trainer(run),
        run.steps,
        lambda results: digits,
        result=lambda state, batch: state.params,
        evaluation=Evaluation(accuracy, score="accuracy"),
        main=True,
    )

    def problems(results: Results) -> list[tuple[Problem, Problem]]:
        own = [
            jax.tree.map(lambda leaf, n=number: jnp.asarray(leaf[n]), results["learn"])
            for number in range(run.seeds)
        ]
        return [(_problem(p, digits.train), _problem(p, digits.test)) for p in own]

    return Recipe(
        [learn, rows_stage(problems, run.seed, run.level)],
        write_report,
        reads=(STAGE,),
        headline=(f"{STAGE}/accuracy", f"{STAGE}/gap", f"{STAGE}/largest_eigenvalue"),
    )
