"""The last stage of a pipeline: students of the distilled set against everything simpler.

Of the distilled set, of as many random real pairs, of random pairs from the best episodes and of
one pair from each cluster of states, K students each are trained at once, one step of cloning a
step of the method. Beside them play the teacher and, if there is one, the policy that was cloned
from all the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pydantic import Field

from jaxmethods.config import Config, OnResume
from jaxmethods.method import Method, Metrics
from jaxmethods.obd.baselines import CloningConfig, cluster_rows, random_rows, top_rows
from jaxmethods.obd.config import OBDConfig
from jaxmethods.obd.evaluate import EvaluationConfig, player
from jaxmethods.obd.method import make_student
from jaxmethods.obd.objectives import bc_loss
from jaxmethods.obd.scores import Summary, score_name, summarise
from jaxmethods.obd.types import Norm, OfflineData, SynSet

INK, ACCENT = "#8fa3b5", "#1f3b57"


class Entries(NamedTuple):
    """What competes."""

    sets: dict[str, SynSet]
    """Synthetic sets, all of one size."""
    policies: dict[str, Any]
    """Finished policies' parameters."""
    norm: Norm
    """Of the states in all sets."""


class State(NamedTuple):
    """Students under way and the finished policies they are compared with."""

    key: jax.Array
    students: dict[str, Any]
    """Parameters [K, ...] by the name of their set."""
    optimizer: dict[str, Any]
    policies: dict[str, Any]
    norm: Norm


class ComparisonConfig(Config):
    """What the distilled set is compared with at the end."""

    cloning: CloningConfig = CloningConfig()
    cloning_steps: Annotated[int, Field(ge=0), OnResume.GROW] = 0
    """Minibatch steps of cloning all the data, as one more competitor; 0: none."""


def real_sets(
    key: jax.Array, data: OfflineData, episode_returns: jax.Array, count: int
) -> dict[str, SynSet]:
    """The selections of `count` real pairs that a distilled set of that size has to beat.

    Args:
        episode_returns: [L], of the episode each row belongs to.
    """
    keys = jax.random.split(key, 3)
    return {
        "random": random_rows(keys[0], data, count),
        "best_episodes": top_rows(keys[1], data, episode_returns, count),
        "clusters": cluster_rows(keys[2], data, count),
    }


def contest(config: OBDConfig, n_students: int) -> Method:
    """Trains `n_students` students of every set of `Entries` with the inner loop's settings."""
    policy = make_student(config.student)
    optimizer = optax.sgd(config.inner_lr, config.inner_momentum or None)

    def init(key: jax.Array, entries: Entries) -> State:
        key, init_key = jax.random.split(key)
        syn = next(iter(entries.sets.values()))
        sizes = syn.states.shape[-1], syn.actions.shape[-1]
        keys = jax.random.split(init_key, n_students)
        # Students of the same number start equal, whatever set they learn from.
        params = jax.vmap(lambda k: policy.init(k, *sizes))(keys)
        students = dict.fromkeys(entries.sets, params)
        moments = dict.fromkeys(entries.sets, jax.vmap(optimizer.init)(params))
        return State(key, students, moments, entries.policies, entries.norm)

    def step(state: State, entries: Entries) -> tuple[State, Metrics]:
        key, noise_key = jax.random.split(state.key)

        def one(params: Any, moments: Any, syn: SynSet, key: jax.Array) -> tuple:
            noise = config.inner_noise * jax.random.normal(key, syn.actions.shape)
            loss, gradient = jax.value_and_grad(bc_loss)(params, syn, noise, policy.sample)
            change, moments = optimizer.update(gradient, moments, params)
            return optax.apply_updates(params, change), moments, loss

        keys = jax.random.split(noise_key, n_students)
        students, moments, metrics = {}, {}, {}
        for name, syn in entries.sets.items():
            train = jax.vmap(one, (0, 0, None, 0))
            students[name], moments[name], loss = train(
                state.students[name], state.optimizer[name], syn, keys
            )
            metrics[f"loss_{name}"] = loss.mean()
        return state._replace(key=key, students=students, optimizer=moments), metrics

    return Method(init, step)


def scores(
    evaluation: EvaluationConfig, config: OBDConfig, state: State, key: jax.Array
) -> dict[str, np.ndarray]:
    """Normalised scores [K, E] of every set's students and [1, E] of every finished policy.

    Empty where nobody can play (see `EvaluationConfig.environment`).
    """
    play, play_plain = player(evaluation, config), player(evaluation, OBDConfig())
    if play is None or play_plain is None:
        return {}
    of_students = {name: play(p, state.norm, key) for name, p in state.students.items()}
    of_policies = {
        name: play_plain(jax.tree.map(lambda leaf: leaf[None], p), state.norm, key)
        for name, p in state.policies.items()
    }
    return {name: np.asarray(s, float) for name, s in {**of_students, **of_policies}.items()}


def judge(
    evaluation: EvaluationConfig, config: OBDConfig, states: State, entries: Entries, keys: Any
) -> Metrics:
    """Mean scores of all competitors and their standard errors over students, [seeds].

    The `judge` of a stage; empty where nobody can play.
    """
    del entries
    rows = []
    for place, key in enumerate(keys):
        state = jax.tree.map(lambda leaf, i=place: leaf[i], states)
        row: dict[str, float] = {}
        for name, values in scores(evaluation, config, state, key).items():
            summary = summarise(values)
            row[f"score_{name}"] = summary.mean
            if len(values) > 1:
                row[f"error_{name}"] = summary.error
        rows.append(row)
    return {name: jnp.array([row[name] for row in rows]) for name in rows[0]}


def judge_policies(
    evaluation: EvaluationConfig,
    policies: Callable[[Any], Any],
    norm: Callable[[], Norm],
    states: Any,
    batch: Any,
    keys: Any,
) -> Metrics:
    """Scores [seeds] of the one policy that each seed's state holds; the `judge` of a stage.

    Args:
        policies: states of all seeds -> parameters of plain tanh-Gaussian policies [seeds].
        norm: gives what their observations are normalised with.
    """
    del batch
    play = player(evaluation, OBDConfig())
    if play is None:
        return {}
    params = policies(states)
    each = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], params) for i in range(len(keys))]
    played = [play(p, norm(), key) for p, key in zip(each, keys, strict=True)]
    return {"score": jnp.array([np.mean(values) for values in played])}


def draw(evaluation: EvaluationConfig, config: OBDConfig, state: State, folder: Path) -> None:
    """Draws one seed's scores as bars; nothing where nobody can play."""
    played = scores(evaluation, config, state, jax.random.key(0))
    if played:
        summaries = {name: summarise(values) for name, values in played.items()}
        measure = score_name(str(evaluation.environment))
        draw_scores(summaries, folder / "scores.png", f"{config.n_syn} pairs", measure)


def draw_scores(summaries: Mapping[str, Summary], path: Path, title: str, measure: str) -> None:
    """A bar for each competitor, best on top, with its standard error over students."""
    ordered = sorted(summaries.items(), key=lambda item: item[1].mean)
    names = [name.replace("_", " ") for name, _ in ordered]
    figure = Figure(figsize=(6.4, 0.5 * len(ordered) + 1.0), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    means = [summary.mean for _, summary in ordered]
    errors = np.nan_to_num([summary.error for _, summary in ordered])
    colours = [ACCENT if name == "distilled" else INK for name, _ in ordered]
    panel.barh(names, means, xerr=errors, color=colours, error_kw={"capsize": 3, "lw": 1})
    for place, mean in enumerate(means):
        panel.text(max(mean, 0.0) + 2.0, place + 0.28, f"{mean:.1f}", fontsize=8, va="center")
    panel.axvline(0.0, color="#555", linewidth=0.8)
    panel.set(xlabel=measure, title=title)
    panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
