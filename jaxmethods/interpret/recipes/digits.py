"""`method: interpret_digits` on the command line: a network learns digits and is reported on.

The first stage trains a ReLU network on scikit-learn's 8 x 8 digits by gradient descent on random
batches, watched by the training monitor (`monitor`); the second computes the report's rows.
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
from jaxmethods.interpret.losses import cross_entropy
from jaxmethods.interpret.problem import Data, Problem, make_problem
from jaxmethods.interpret.recipes.rows import STAGE, Subject, rows_stage, write_report
from jaxmethods.method import Method, Objective, made_once
from jaxmethods.numerics.predictions import right
from jaxmethods.stages import Diagnosable, Evaluation, Recipe, Results, Train

CLASSES = 10


class Digits(NamedTuple):
    """All images as rows of pixels in [0, 1]."""

    train: Data
    test: Data


class State(NamedTuple):
    """What training carries."""

    params: Any
    key: jax.Array


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
    """Gradient descent on random batches."""

    def batch_of(key: jax.Array, digits: Digits) -> Data:
        rows = jax.random.randint(key, (run.batch,), 0, len(digits.train.targets))
        return jax.tree.map(lambda x: x[rows], digits.train)

    def init(key: jax.Array, digits: Digits) -> State:
        weights, rest = jax.random.split(key)
        sizes = (digits.train.inputs.shape[1], *run.hidden, CLASSES)
        return State(initial_params(weights, sizes), rest)

    def step(state: State, digits: Digits) -> tuple[State, Mapping[str, jax.Array]]:
        key, own = jax.random.split(state.key)
        batch = batch_of(own, digits)
        loss, gradient = jax.value_and_grad(mean_loss)(state.params, batch)
        return State(trees.axpy(-run.rate, gradient, state.params), key), {"loss": loss}

    def objective(state: State, digits: Digits) -> Objective:
        return Objective(state.params, lambda params, key: mean_loss(params, batch_of(key, digits)))

    return Method(init, step, objective)


def mean_loss(params: Any, batch: Data) -> jax.Array:
    """Mean cross entropy of rows of pixels, []."""
    return jnp.mean(cross_entropy.value(network(params, batch.inputs), batch.targets))


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
        hits = right(network(state.params, digits.test.inputs), digits.test.targets)
        return {"accuracy": jnp.mean(hits, dtype=jnp.float32)}

    learn = Train(
        "learn",
        made_once(trainer, run),
        run.steps,
        lambda results: digits,
        result=lambda state, batch: state.params,
        evaluation=Evaluation(accuracy, score="accuracy"),
        main=True,
    )

    def params_of(results: Results, seed: int) -> Any:
        return jax.tree.map(lambda leaf: jnp.asarray(leaf[seed]), results["learn"])

    def subjects(results: Results) -> list[Subject]:
        own = [params_of(results, number) for number in range(run.seeds)]
        return [Subject(_problem(p, digits.train), _problem(p, digits.test)) for p in own]

    def diagnosed(results: Results, seed: int) -> Diagnosable:
        both = (
            (digits.train.inputs, digits.train.targets),
            (digits.test.inputs, digits.test.targets),
        )
        params = params_of(results, seed)
        return Diagnosable("a network of digits", network, params, "cross_entropy", *both)

    return Recipe(
        [learn, rows_stage(subjects, run.seed, run.level)],
        write_report,
        reads=(STAGE,),
        headline=(f"{STAGE}/accuracy", f"{STAGE}/gap", f"{STAGE}/largest_eigenvalue"),
        diagnosable=diagnosed,
    )
