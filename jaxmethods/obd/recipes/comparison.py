"""What closes a pipeline: students of the distilled set against everything simpler.

K students are trained on each of four sets at once, one step of cloning a step of the method: the
distilled set, as many random real pairs, random pairs from the best episodes, and one pair from
each cluster of states. Then all of them play, beside the teacher and, if there is one, the policy
that was cloned from all the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmethods.layout import Layout
from jaxmethods.method import Method, Metrics, Objective, gradient_step
from jaxmethods.numerics.statistics import Summary, summarize
from jaxmethods.obd.baselines import cluster_rows, random_rows, top_rows
from jaxmethods.obd.config import OBDConfig
from jaxmethods.obd.evaluate import Player
from jaxmethods.obd.method import make_student
from jaxmethods.obd.objectives import bc_loss
from jaxmethods.obd.types import SynSet
from jaxmethods.offline_rl.types import Norm, OfflineData
from jaxmethods.plotting import new_figure, open_frame, write_png
from jaxmethods.stages import Arrays, Part, Place

INK, ACCENT = "#8fa3b5", "#1f3b57"
SETS = ("distilled", "random", "best_episodes", "clusters")
"""Sets that students are trained on."""


class State(NamedTuple):
    """Students under way."""

    key: jax.Array
    students: dict[str, Any]
    """Parameters [K, ...] by the name of their set."""
    optimizer: dict[str, Any]


class Competitor(NamedTuple):
    """Who plays for a score."""

    name: str
    play: Player
    params: Any
    """[seeds, K, ...], or [K, ...] of a policy that all seeds share."""
    per_seed: bool
    norm: Norm | None = None
    """What it normalizes states with, shared by all seeds; None: what the sets' students do."""


def real_sets(
    key: jax.Array, data: OfflineData, episode_returns: jax.Array, count: int
) -> dict[str, SynSet]:
    """The selections of `count` real pairs that a distilled set of that size has to beat.

    Args:
        key: [] typed random key.
        data: L rows.
        episode_returns: [L], of the episode each row belongs to.
        count: N, static.

    Returns:
        Name of a selection -> N pairs.
    """
    keys = jax.random.split(key, 3)
    return {
        "random": random_rows(keys[0], data, count),
        "best_episodes": top_rows(keys[1], data, episode_returns, count),
        "clusters": cluster_rows(keys[2], data, count),
    }


def contest(config: OBDConfig, n_students: int) -> Method:
    """Trains `n_students` students of every set with the inner loop's settings.

    The batch is a dictionary of `SynSet`s, all of one size.
    """
    policy = make_student(config.student)
    optimizer = optax.sgd(config.inner_lr, config.inner_momentum or None)

    def init(key: jax.Array, sets: dict[str, SynSet]) -> State:
        key, init_key = jax.random.split(key)
        syn = next(iter(sets.values()))
        sizes = syn.states.shape[-1], syn.actions.shape[-1]
        keys = jax.random.split(init_key, n_students)
        # Students of the same number start equal, whatever set they learn from.
        params = jax.vmap(lambda k: policy.init(k, *sizes))(keys)
        moments = jax.vmap(optimizer.init)(params)
        return State(key, dict.fromkeys(sets, params), dict.fromkeys(sets, moments))

    def step(state: State, sets: dict[str, SynSet]) -> tuple[State, Metrics]:
        key, noise_key = jax.random.split(state.key)

        def one(params: Any, moments: Any, syn: SynSet, key: jax.Array) -> tuple:
            noise = config.inner_noise * jax.random.normal(key, syn.actions.shape)
            loss, gradient = jax.value_and_grad(bc_loss)(params, syn, noise, policy.sample)
            return *gradient_step(optimizer, gradient, moments, params), loss

        keys = jax.random.split(noise_key, n_students)
        students, moments, metrics = {}, {}, {}
        for name, syn in sets.items():
            train = jax.vmap(one, (0, 0, None, 0))
            students[name], moments[name], loss = train(
                state.students[name], state.optimizer[name], syn, keys
            )
            metrics[f"loss_{name}"] = loss.mean()
        return State(key, students, moments), metrics

    def objective(state: State, sets: dict[str, SynSet]) -> Objective:
        """The mean loss of all students."""

        def loss(students: dict[str, Any], key: jax.Array) -> jax.Array:
            def of_set(name: str, syn: SynSet) -> jax.Array:
                noise = config.inner_noise * jax.random.normal(key, syn.actions.shape)
                each = jax.vmap(lambda own: bc_loss(own, syn, noise, policy.sample))
                return each(students[name]).mean()

            return jnp.mean(jnp.stack([of_set(name, syn) for name, syn in sets.items()]))

        return Objective(state.students, loss)

    return Method(init, step, objective)


def score_parts(
    competitors: Sequence[Competitor], norm: Norm, keys: jax.Array, place: Place
) -> list[Part]:
    """A part for every competitor: its `scores` [seeds, K, E].

    Args:
        competitors: who plays.
        norm: of the states in all sets.
        keys: [seeds]; all competitors of a seed play with the same.
        place: puts host values on the mesh.

    Returns:
        Parts for a `Compute` stage.
    """

    @cache  # sets of students of one shape share a program
    def measure_of(measure: Callable[..., Any], per_seed: bool) -> Callable[..., Any]:
        return jax.jit(jax.vmap(measure, (0 if per_seed else None, None, 0)))

    def compute(one: Competitor) -> Arrays:
        own = Layout(per_seed=("",) if one.per_seed else ())
        measure = measure_of(one.play.measure, one.per_seed)
        known = norm if one.norm is None else one.norm
        inputs = place(one.params, own), *place((known, keys), Layout())
        # Whole in every process: what plays on the host plays in each of them.
        return {"scores": one.play.scores(jax.device_get(place(measure(*inputs), Layout())))}

    return [Part(one.name, partial(compute, one)) for one in competitors]


def score_metrics(scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Mean scores of all competitors and their standard errors over students, [seeds].

    Args:
        scores: name -> [seeds, K, E].
    """
    metrics = {}
    for name, values in scores.items():
        each = [summarize(of_seed) for of_seed in values]
        metrics[f"score_{name}"] = np.array([summary.mean for summary in each])
        if values.shape[1] > 1:
            metrics[f"score_{name}_error"] = np.array([summary.error for summary in each])
    return metrics


def over_seeds(scores: Mapping[str, np.ndarray]) -> dict[str, Summary]:
    """Each competitor's mean score with its standard error: over seeds, of one seed over students.

    Args:
        scores: name -> [seeds, K, E].
    """
    return {
        name: summarize(values if len(values) > 1 else values[0]) for name, values in scores.items()
    }


def draw_scores(summaries: Mapping[str, Summary], path: Path, title: str, measure: str) -> None:
    """A bar for each competitor, best on top, with its standard error.

    Args:
        summaries: competitor -> mean and standard error.
        path: of the PNG.
        title: of the figure.
        measure: what a score is called.
    """
    ordered = sorted(summaries.items(), key=lambda item: item[1].mean)
    names = [name.replace("_", " ") for name, _ in ordered]
    figure = new_figure(6.4, 0.5 * len(ordered) + 1.0)
    panel = figure.subplots()
    means = [summary.mean for _, summary in ordered]
    errors = [summary.error or 0.0 for _, summary in ordered]
    colors = [ACCENT if name == "distilled" else INK for name, _ in ordered]
    panel.barh(names, means, xerr=errors, color=colors, error_kw={"capsize": 3, "lw": 1})
    for place, mean in enumerate(means):
        end = max(mean, 0.0), place
        style = {"xytext": (4, 6), "textcoords": "offset points", "fontsize": 8}
        panel.annotate(f"{mean:z.1f}", end, **style)
    panel.axvline(0.0, color="#555", linewidth=0.8)
    panel.set(xlabel=measure, title=title)
    open_frame(panel)
    write_png(figure, path)
