"""`method: interpret_grokking` on the command line: which measure moves first when a network groks.

A small network learns a + b mod p from a share of all pairs. It knows its own pairs long before it
answers the others (Power et al., "Grokking", arXiv 2201.02177, 2022); the monitor watches what
changes meanwhile. The figure has every measure between its value when the training pairs are known
and its last one, and the table says when each had gone half of its way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmethods.files import write_atomically
from jaxmethods.interpret.config import GrokkingRun as Run
from jaxmethods.interpret.losses import cross_entropy
from jaxmethods.method import Method, Objective, gradient_step, made_once
from jaxmethods.numerics.predictions import right
from jaxmethods.numerics.statistics import markdown_table
from jaxmethods.plotting import new_figure, open_frame, write_png
from jaxmethods.stages import Diagnosable, Evaluation, Recipe, Results, Train

STAGE = "learn"
KNOWN, MOVED = 0.99, 0.5
"""Accuracy from which pairs are known; share of its way after which a measure has moved."""
FINAL = 0.1
"""Share of the rows, at the end, whose median is a measure's last value."""
MEASURES = {
    "test_accuracy": "accuracy on other pairs",
    "test_loss": "loss on other pairs",
    "monitor_weight_norm": "norm of the weights",
    "monitor_sharpness": "sharpness",
    "monitor_gradient_norm": "norm of the gradient",
    "monitor_distance": "distance from the start",
    "rank": "effective rank of the embedding",
}


class Pairs(NamedTuple):
    """Pairs of numbers and their sum."""

    train: tuple[Any, Any]
    """[N, 2] int32 and [N]."""
    test: tuple[Any, Any]


class State(NamedTuple):
    """What training carries."""

    params: Any
    optimizer: optax.OptState


def network(params: Any, pairs: jax.Array) -> jax.Array:
    """Logits [N, p] of pairs [N, 2]."""
    x = params["embed"][pairs].reshape(len(pairs), -1)  # [N, 2 D]
    return jax.nn.relu(x @ params["first"]) @ params["last"]


def all_pairs(run: Run) -> Pairs:
    """Every pair once, split by the run's seed."""
    first, second = np.divmod(np.arange(run.prime**2), run.prime)
    order = np.random.default_rng(run.seed).permutation(run.prime**2)
    pairs = np.stack([first, second], axis=1)[order].astype(np.int32)
    sums = (pairs.sum(1) % run.prime).astype(np.int32)
    count = max(1, round(run.share * len(pairs)))
    return Pairs((pairs[:count], sums[:count]), (pairs[count:], sums[count:]))


def mean_loss(params: Any, pairs: tuple[jax.Array, jax.Array]) -> jax.Array:
    return jnp.mean(cross_entropy.value(network(params, pairs[0]), pairs[1]))


def accuracy(params: Any, pairs: tuple[jax.Array, jax.Array]) -> jax.Array:
    return jnp.mean(right(network(params, pairs[0]), pairs[1]), dtype=jnp.float32)


def trainer(run: Run) -> Method:
    """AdamW on all training pairs at once."""
    optimizer = optax.adamw(run.rate, b2=0.98, weight_decay=run.weight_decay)
    half = run.width // 2

    def init(key: jax.Array, pairs: Pairs) -> State:
        del pairs
        shapes = {
            "embed": (run.prime, half),
            "first": (2 * half, run.width),
            "last": (run.width, run.prime),
        }
        params = {
            name: jax.random.normal(own, shape) / (half if name == "embed" else shape[0]) ** 0.5
            for own, (name, shape) in zip(jax.random.split(key, 3), shapes.items(), strict=True)
        }
        return State(params, optimizer.init(params))

    def step(state: State, pairs: Pairs) -> tuple[State, Mapping[str, jax.Array]]:
        loss, gradient = jax.value_and_grad(mean_loss)(state.params, pairs.train)
        params, moments = gradient_step(optimizer, gradient, state.optimizer, state.params)
        values = jnp.linalg.svd(state.params["embed"], compute_uv=False)
        share = values / jnp.sum(values)
        metrics = {
            "loss": loss,
            "train_accuracy": accuracy(state.params, pairs.train),
            "test_loss": mean_loss(state.params, pairs.test),
            "test_accuracy": accuracy(state.params, pairs.test),
            "rank": jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share, share))),
        }
        return State(params, moments), metrics

    def objective(state: State, pairs: Pairs) -> Objective:
        return Objective(state.params, lambda params, key: mean_loss(params, pairs.train))

    return Method(init, step, objective)


def recipe(run: Run) -> Recipe:
    """One stage, and the drawing."""
    pairs = all_pairs(run)

    def measure(state: State, pairs: Pairs, key: jax.Array) -> dict[str, jax.Array]:
        del key
        return {
            "train_accuracy": accuracy(state.params, pairs.train),
            "test_accuracy": accuracy(state.params, pairs.test),
        }

    def report(results: Results, folder: Path) -> None:
        del results
        rows = (folder.parent / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        write(read_curves([json.loads(row) for row in rows]), folder)

    def diagnosed(results: Results, seed: int) -> Diagnosable:
        params = jax.tree.map(lambda leaf: leaf[seed], results[STAGE])
        title = "a network that adds modulo a prime"
        return Diagnosable(title, network, params, "cross_entropy", pairs.train, pairs.test)

    learn = Train(
        STAGE,
        made_once(trainer, run),
        run.steps,
        lambda results: pairs,
        result=lambda state, batch: state.params,
        evaluation=Evaluation(measure),
        main=True,
    )
    headline = (f"{STAGE}/test_accuracy", f"{STAGE}/train_accuracy")
    return Recipe([learn], report, (STAGE,), headline, diagnosable=diagnosed)


def read_curves(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Steps and measures of the first seed, [rows]."""
    own = [row for row in rows if row.get("stage") == STAGE and "train/loss" in row]
    names = ["train_accuracy", *MEASURES]
    curves = {"step": np.array([row["step"] for row in own], float)}
    for name in names:
        if all(f"train/{name}" in row for row in own):
            values = [np.ravel(np.asarray(row[f"train/{name}"], float))[0] for row in own]
            curves[name] = np.array(values)
    return curves


def order_of(curves: Mapping[str, np.ndarray]) -> tuple[float | None, list[tuple[str, float]]]:
    """When the training pairs are known, and when each measure has moved, the first one first.

    Args:
        curves: "step", "train_accuracy" and measures, [rows].

    Returns:
        (step from which training pairs are known, or None; [(measure, step)]).
    """
    step = curves["step"]
    known = np.flatnonzero(curves["train_accuracy"] >= KNOWN)
    if not len(known):
        return None, []
    start, last = known[0], max(1, int(FINAL * len(step)))
    moved = []
    for name in MEASURES:
        if name not in curves:
            continue
        way = (curves[name] - curves[name][start]) / _way(curves[name], start, last)
        beyond = np.flatnonzero(way[start:] >= MOVED)
        if len(beyond):
            moved.append((name, float(step[start + beyond[0]])))
    return float(step[start]), sorted(moved, key=lambda pair: pair[1])


def _way(values: np.ndarray, start: int, last: int) -> float:
    """What a measure changes by, from where training pairs are known to the end."""
    change = float(np.median(values[-last:]) - values[start])
    return change if change else 1.0


def write(curves: Mapping[str, np.ndarray], folder: Path) -> None:
    """Writes `table.md` and the figure.

    Args:
        curves: of `read_curves`.
        folder: where they go.
    """
    known, moved = order_of(curves)
    lines = [(MEASURES[name], f"{step:.0f}") for name, step in moved]
    said = (
        "The training pairs are never known."
        if known is None
        else (f"The training pairs are known from step {known:.0f} on.")
    )
    table = markdown_table(["measure", "has gone half of its way at step"], lines)
    write_atomically(folder / "table.md", f"{said}\n\n{table}\n".encode())
    if known is None:
        return
    (folder / "figures").mkdir(exist_ok=True)
    _draw(curves, known, dict(moved), folder / "figures" / "which_moves_first.png")


def _draw(
    curves: Mapping[str, np.ndarray], known: float, moved: Mapping[str, float], path: Path
) -> None:
    step = curves["step"]
    start = int(np.flatnonzero(step >= known)[0])
    last = max(1, int(FINAL * len(step)))
    figure = new_figure(8.4, 5.2)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, 1.6])
    above.plot(step, curves["train_accuracy"], color="#8fa3b5", label="training pairs")
    above.plot(step, curves["test_accuracy"], color="#1f3b57", label="other pairs")
    above.set_ylabel("accuracy")
    above.legend(frameon=False)
    palette = ["#1f3b57", "#d1495b", "#2a9d8f", "#e9a03b", "#7b5ea7", "#4f9dde", "#7f7f7f"]
    for (name, title), color in zip(MEASURES.items(), palette, strict=True):
        if name not in curves:
            continue
        way = (curves[name] - curves[name][start]) / _way(curves[name], start, last)
        below.plot(step[start:], way[start:], color=color, label=title, lw=1.2)
        if name in moved:
            below.plot(moved[name], MOVED, "o", color=color, ms=6)
    below.axhline(MOVED, color="#dde3e9", lw=0.8, zorder=0)
    below.set(ylabel="share of its way", ylim=(-0.5, 2))
    below.set_xlabel("step")
    below.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    for panel in (above, below):
        open_frame(panel)
    write_png(figure, path)
