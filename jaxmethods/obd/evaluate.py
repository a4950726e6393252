"""How good a synthetic set is: students trained on it from scratch, at work.

One evaluation trains `students` fresh students with the distillation's own inner steps, rate and
noise, and lets each play `episodes` episodes with deterministic actions, its observations
normalized by the dataset's statistics (Lei, Zhang and Tao, NeurIPS 2024, section 5.1). Scores are
normalized returns, 0 a random policy, 100 an expert of that simulator; brax's are returns.

Whatever plays does so in two parts (`Player`): a pure one, which in an environment in JAX plays all
episodes on the mesh, and one on the host, where MuJoCo plays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmethods.config import nearest
from jaxmethods.envs.control.episodes import BRAX, CONTROL, episode_returns, make_control
from jaxmethods.envs.finite import finite
from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.statistics import standard_error
from jaxmethods.obd.baselines import random_rows
from jaxmethods.obd.config import EvaluationConfig, OBDConfig, PlayConfig
from jaxmethods.obd.method import make_student
from jaxmethods.obd.students import offline_loss, train_students
from jaxmethods.obd.types import Source, SynSet
from jaxmethods.offline_rl.mujoco_returns import (
    ENVIRONMENTS,
    SPACES,
    check_mujoco,
    evaluate_returns,
)
from jaxmethods.offline_rl.policies import Policy
from jaxmethods.offline_rl.scores import score
from jaxmethods.offline_rl.types import Norm


class Player(NamedTuple):
    """Lets policies play, in two parts."""

    measure: Callable[[Any, Norm, jax.Array], Any]
    """(params [K], norm, key) -> what `scores` is given; pure, for one seed."""
    scores: Callable[[Any], np.ndarray]
    """Measures of all seeds, on the host -> normalized scores [seeds, K, E]."""

    def __call__(self, params: Any, norm: Norm, key: jax.Array) -> np.ndarray:
        """Both parts for one seed: (params [K], norm, key) -> normalized scores [K, E]."""
        measured = jax.device_get(self.measure(params, norm, key))
        return self.scores(jax.tree.map(lambda leaf: leaf[None], measured))[0]


class Entrants(NamedTuple):
    """What plays on the host."""

    params: Any
    """[K]"""
    norm: Norm
    seed: jax.Array
    """[] of the first episode; the others follow."""


class Measured(NamedTuple):
    """What is measured of one set of pairs."""

    offline_loss: jax.Array
    """[]"""
    played: Any
    """What all students did, see `Player.measure`; None where they don't play."""


def measure_set(
    evaluation: EvaluationConfig, config: OBDConfig, syn: SynSet, source: Source, key: jax.Array
) -> dict[str, Measured]:
    """Trains the students of a set, and of as many random real pairs, and lets them play.

    Pure: the `measure` of a stage's evaluation, with `judge_sets` for its judge.

    Args:
        evaluation: where students play, how many and how often.
        config: settings of the distillation, for the inner loop's.
        syn: all of its pairs are used (see `method.used`).
        source: its data and their normalization are looked at.
        key: [] typed; the same key gives the same numbers.

    Returns:
        "distilled" and, if asked for, "random" -> what was measured.
    """
    play = player(evaluation, config)
    train_key, loss_key, play_key, row_key = jax.random.split(key, 4)
    sets = {"distilled": syn}
    if evaluation.random_selection:
        sets["random"] = random_rows(row_key, source.data, len(syn.states))
    found = {}
    for name, pairs in sets.items():
        params = trained_students(config, evaluation.students, train_key, pairs)
        one = jax.tree.map(lambda leaf: leaf[0], params)
        loss = offline_loss(loss_key, one, source.data, make_student(config.student).sample)
        played = None if play is None else play.measure(params, source.norm, play_key)
        found[name] = Measured(loss, played)
    return found


def judge_sets(
    evaluation: EvaluationConfig, config: OBDConfig, measures: Mapping[str, Measured]
) -> dict[str, np.ndarray]:
    """What `measure_set` measured in all seeds, in numbers.

    Args:
        evaluation: where students play, how many and how often.
        config: settings of the distillation, for the inner loop's.
        measures: what `measure_set` returned, with a leading axis of seeds.

    Returns:
        Metrics [seeds]: offline_loss, the mean squared error of a student's sampled actions
        against all of the data's; where students play score (mean over students and episodes) and
        score_error (standard error over students); the same with `random_` of as many random real
        pairs. A student with a number that isn't finite makes its set's score NaN.
    """
    play = player(evaluation, config)
    metrics = {}
    for name, measured in measures.items():
        prefix = "" if name == "distilled" else f"{name}_"
        metrics[f"{prefix}offline_loss"] = np.asarray(measured.offline_loss)
        if play is not None:
            each = play.scores(measured.played).mean(2)  # [seeds, K]
            metrics[f"{prefix}score"] = each.mean(1)
            metrics[f"{prefix}score_error"] = standard_error(each, 1)
    return metrics


def measure_policy(play: Player, params: Any, norm: Norm, key: jax.Array) -> Any:
    """Lets one policy play; pure.

    Args:
        play: who lets it play.
        params: of one policy.
        norm: of the states the policy was trained on.
        key: [] typed random key.

    Returns:
        What `play.scores` is given, of one seed and one policy.
    """
    return play.measure(jax.tree.map(lambda leaf: leaf[None], params), norm, key)


def judge_policies(play: Player, measures: Any) -> dict[str, np.ndarray]:
    """The score [seeds] of the one policy of each seed."""
    return {"score": play.scores(measures).mean((1, 2))}


@compiled("config", "students")
def trained_students(config: OBDConfig, students: int, key: jax.Array, syn: SynSet) -> Any:
    """Students cloned from a set with the distillation's inner loop.

    Args:
        config: architecture, rate, momentum, noise and steps; static.
        students: how many; static.
        key: [] typed random key.
        syn: the set.

    Returns:
        Parameters, leaves [students, ...].
    """
    optimizer = optax.sgd(config.inner_lr, config.inner_momentum or None)
    policy = make_student(config.student)
    return train_students(
        key, syn, policy, students, optimizer, config.inner_steps, config.inner_noise
    )


def check_environment(evaluation: PlayConfig) -> None:
    """Raises `ValueError` for an unknown environment, `MissingExtraError` for one without its
    simulator."""
    name, known = evaluation.environment, {*ENVIRONMENTS, *CONTROL}
    if name is not None and name.startswith(BRAX):
        _environment(name)
    elif name in ENVIRONMENTS:
        check_mujoco(name)
    elif name not in (None, *known):
        raise ValueError(
            f"evaluation.environment: unknown environment {name!r}{nearest(str(name), known)}"
        )


def check_spaces(environment: str | None, states: int, actions: int) -> None:
    """Raises `ValueError` if policies of these dimensions cannot act in a known environment."""
    if environment is None:
        return
    if environment in ENVIRONMENTS:
        expected = SPACES[environment]
    else:
        env = _environment(environment)
        expected = env.observation_spec.shape[0], env.action_spec.shape[0]
    if expected != (states, actions):
        raise ValueError(
            f"evaluation.environment: {environment} has {expected[0]} observations and "
            f"{expected[1]} actions, got data with {states} and {actions}"
        )


def player(evaluation: PlayConfig, config: OBDConfig) -> Player | None:
    """Lets students play; None where they don't (see `check_environment`)."""
    name = evaluation.environment
    if name is None:
        return None
    if name in ENVIRONMENTS:
        host = partial(_mujoco_scores, evaluation, config.student.residual)
        return Player(_entrants, host)
    measure = partial(_control_returns, _environment(name), make_student(config.student))
    return Player(partial(measure, evaluation.episodes), partial(_scores, name))


def _entrants(params: Any, norm: Norm, key: jax.Array) -> Entrants:
    return Entrants(params, norm, jax.random.randint(key, (), 0, 2**30))


def _mujoco_scores(evaluation: PlayConfig, residual: bool, entrants: Entrants) -> np.ndarray:
    name = str(evaluation.environment)
    returns = []
    for place, seed in enumerate(np.asarray(entrants.seed).tolist()):
        params, norm = jax.tree.map(lambda leaf, i=place: leaf[i], entrants[:2])
        returns.append(
            evaluate_returns(
                name,
                params,
                norm,
                evaluation.episodes,
                seed=seed,
                residual=residual,
                processes=evaluation.processes,
            )
        )
    return _scores(name, np.stack(returns))


def _scores(name: str, returns: Any) -> np.ndarray:
    return np.asarray(score(name, returns), float)


@cache
def _environment(name: str) -> Any:
    """Made once and outside of the trace: specs look at their bounds' values."""
    return make_control(name)


@compiled("env", "policy", "episodes")
def _control_returns(
    env: Any, policy: Policy, episodes: int, params: Any, norm: Norm, key: jax.Array
) -> jax.Array:
    def one(params: Any) -> jax.Array:
        def act(key: jax.Array, observation: jax.Array) -> jax.Array:
            del key
            return policy.mode(params, norm.apply(jnp.asarray(observation)))

        returns = episode_returns(env, act, key, episodes)
        # Actions may be finite where weights are not: tanh makes an infinite one a 1.
        return jnp.where(finite(params, batch_axes=0), returns, jnp.nan)

    return jax.vmap(one)(params)
