"""What an evaluation reports: accuracies with their uncertainty, baselines, ties and order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.novo import baselines, heads
from jaxmethods.novo.heads import Heads
from jaxmethods.novo.resample import Questions, bootstrap, elect
from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.keys import named

RANDOM_DRAWS = 16


def accuracies(
    judged: Questions, chosen: Heads, predictions: jax.Array, seed: int
) -> dict[str, float]:
    """Norm voting with Wilson's 95 % interval, under another order of candidates, random heads.

    Args:
        judged: the questions that are judged, with norms and labels.
        chosen: who votes.
        predictions: [n] int, the election's.
        seed: of shuffling and of the random heads.

    Returns:
        Metric -> number; accuracies are shares in [0, 1].
    """
    from scipy.stats import binomtest  # a second to import

    right = np.asarray(predictions) == np.asarray(judged.labels)
    interval = binomtest(int(right.sum()), len(right)).proportion_ci(0.95, method="wilson")
    shuffled = np.random.default_rng(seed + 1).random(judged.mask.shape)
    order = np.argsort(np.where(judged.mask, shuffled, 2.0), axis=1)
    numbers = jnp.sum(chosen.max_mask), jnp.sum(chosen.min_mask)
    keys = jax.random.split(named(jax.random.key(seed), "random heads"), RANDOM_DRAWS)
    drawn = jax.vmap(baselines.random_heads, (0, None, None, None))(
        keys, judged.norms.shape[-1], *numbers
    )
    return {
        "accuracy": float(right.mean()),
        "accuracy_95_low": float(interval.low),
        "accuracy_95_high": float(interval.high),
        "shuffled_order_accuracy": _reordered(judged, chosen, order),
        "chance": float(baselines.chance(judged.mask)),
        "random_heads_accuracy": float(jnp.mean(_elections(judged, drawn))),
        "voters_max": int(numbers[0]),
        "voters_min": int(numbers[1]),
    }


def in_source_order(
    judged: Questions, chosen: Heads, source: Sequence[Sequence[int] | None]
) -> float:
    """Accuracy with the candidates as their data set lists them, where that is known."""
    order = np.tile(np.arange(judged.mask.shape[1]), (len(source), 1))
    for row, places in enumerate(source):
        if places is not None:
            order[row, : len(places)] = np.argsort(places)
    return _reordered(judged, chosen, order)


def likelihood_accuracies(
    judged: Questions, likelihood: np.ndarray, lengths: np.ndarray
) -> dict[str, float]:
    """The most likely candidate, by the sum over its tokens and by their mean."""
    mean = likelihood / np.maximum(lengths, 1)
    scored = {"likelihood_accuracy": likelihood, "mean_likelihood_accuracy": mean}
    return {
        name: _accuracy(baselines.most_likely(jnp.asarray(value), judged.mask), judged)
        for name, value in scored.items()
    }


def baseline_accuracies(discovery: Questions, judged: Questions) -> dict[str, float]:
    """What the labeled questions give without a selection of many heads."""
    counts = heads.correct_counts(*discovery)
    who = jax.tree.map(
        lambda *pair: jnp.stack(pair), baselines.single_best(counts), baselines.all_heads(counts)
    )
    single, everyone = _elections(judged, who)
    weights = jax.jit(baselines.probe)(*discovery)
    return {
        "single_head_accuracy": float(single),
        "all_heads_accuracy": float(everyone),
        "probe_accuracy": _accuracy(baselines.probe_predict(weights, *judged[:2]), judged),
        "majority_accuracy": _accuracy(baselines.majority(discovery.labels, judged.mask), judged),
    }


def over_draws(
    key: jax.Array, pool: Questions, judged: Questions | None, **settings: Any
) -> dict[str, float]:
    """Mean and spread of the accuracy over other selections; see `resample.bootstrap`."""
    run = jax.jit(partial(bootstrap, **settings))
    accuracy = np.asarray(run(key, pool, judged).accuracy)
    return {
        "draws_mean_accuracy": float(accuracy.mean()),
        "draws_standard_deviation": float(accuracy.std(ddof=1)) if len(accuracy) > 1 else 0.0,
        "draws_lowest_accuracy": float(accuracy.min()),
        "draws_highest_accuracy": float(accuracy.max()),
    }


def ties(judged: Questions) -> dict[str, float]:
    """Shares of heads, over questions, whose extreme norm isn't one candidate's alone."""

    def share(norms: jax.Array) -> float:
        there = judged.mask[..., None]
        largest, smallest = (jnp.where(there, norms, fill) for fill in (-jnp.inf, jnp.inf))
        most = jnp.sum(largest == largest.max(1, keepdims=True), axis=1)
        least = jnp.sum(smallest == smallest.min(1, keepdims=True), axis=1)
        return float(jnp.mean((most > 1) | (least > 1)))

    rounded = judged.norms.astype(jnp.bfloat16).astype(jnp.float32)
    return {"tied_heads": share(judged.norms), "tied_heads_in_bfloat16": share(rounded)}


def _accuracy(predictions: jax.Array, judged: Questions) -> float:
    return float(baselines.accuracy(predictions, judged.labels))


@compiled()
def _elections(judged: Questions, who: Heads) -> jax.Array:
    """Accuracies of several selections [D]."""
    chosen = heads.choices(*judged[:2])
    return jax.vmap(lambda one: elect(chosen, judged.mask, judged.labels, one))(who)


def _reordered(judged: Questions, chosen: Heads, order: np.ndarray) -> float:
    """Accuracy with candidate order[q, i] at place i; only ties can make it another one."""
    rows = np.arange(len(order))[:, None]
    norms, mask = np.asarray(judged.norms), np.asarray(judged.mask)
    labels = np.asarray(judged.labels)
    moved = heads.predict(jnp.asarray(norms[rows, order]), jnp.asarray(mask[rows, order]), chosen)
    elected = np.asarray(moved) >= 0  # without voters there is no prediction
    picked = order[rows[:, 0], np.asarray(moved)]
    # A candidate that equals the right one is right; equal candidates have equal norms.
    equal = (norms[rows[:, 0], picked] == norms[rows[:, 0], labels]).all(-1)
    return float((elected & ((picked == labels) | equal)).mean())
