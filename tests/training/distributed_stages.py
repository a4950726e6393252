"""A recipe with every kind of stage that computes on the mesh: it trains, computes in two parts
from what was trained, trains again from that, and a host judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.config import TrainingRunConfig
from jaxmethods.layout import Layout, Rule
from jaxmethods.stages import Arrays, Compute, Evaluation, Part, Place, Recipe, Results, Train
from tests.training import toy

ROWS, WIDTH = 4, 3
LAYOUT = Layout(state=(Rule("weights", ("data",)),))


class Run(TrainingRunConfig):
    """Config of the stages."""

    method: Literal["stages"]


def reached(state: toy.State, batch: jax.Array, key: jax.Array) -> jax.Array:
    """Measure: the weights [ROWS, WIDTH] with noise, far from their aim."""
    return state.weights - batch + 0.01 * jax.random.normal(key, batch.shape)


def worst(measures: Any) -> Mapping[str, np.ndarray]:
    """Judge, [seeds, ROWS, WIDTH]: what sorts on the host."""
    assert isinstance(measures, np.ndarray), type(measures)
    errors = np.sort(np.abs(measures).max(-1), axis=-1)
    return {"score": -errors[:, -1], "median": errors[:, ROWS // 2]}


def parts(results: Results, place: Place) -> Sequence[Part]:
    """Products of the trained weights with images of theirs, one part for each of two images."""
    weights = results["first"].weights  # [seeds, ROWS, WIDTH]

    def compute(index: int) -> Arrays:
        images = np.arange(float(ROWS * WIDTH), dtype=np.float32).reshape(ROWS, WIDTH) + index
        placed = place(images, Layout(batch=(Rule("", ("data",)),)))
        products = jax.jit(lambda w, x: jnp.tanh(w.mean(0) * x / 10))(weights, placed)
        return {"products": products, "host": np.float32(index)}

    return [Part(f"image-{index}", lambda index=index: compute(index)) for index in range(2)]


def finish(found: Sequence[Arrays]) -> np.ndarray:
    return sum(part["products"] * (1 + part["host"]) for part in found)


def recipe(run: Run) -> Recipe:
    del run
    judged = Evaluation(reached, worst, score="score")

    def aim(results: Results) -> np.ndarray:
        del results
        return np.linspace(-1, 1, ROWS * WIDTH, dtype=np.float32).reshape(ROWS, WIDTH)

    return Recipe(
        [
            Train("first", toy.noisy_descent(), 9, aim, evaluation=judged, layout=LAYOUT),
            Compute("products", parts, finish, lambda found: {"largest": found.max()}),
            Train(
                "second",
                toy.noisy_descent(),
                7,
                lambda results: results["products"],
                evaluation=judged,
                layout=LAYOUT,
            ),
        ]
    )
