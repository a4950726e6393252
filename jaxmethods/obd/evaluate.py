"""How good a synthetic set is: students trained on it from scratch, at work.

One evaluation trains `students` fresh students with the distillation's own inner steps, rate and
noise, and lets each play `episodes` episodes with deterministic actions, its observations
normalised by the dataset's statistics (Lei, Zhang and Tao, NeurIPS 2024, section 5.1). Scores are
normalised returns, 0 a random policy, 100 an expert of that simulator; brax's are returns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmethods.config import Config, OnResume, nearest
from jaxmethods.envs.control import BRAX, CONTROL, episode_returns, make_control
from jaxmethods.envs.finite import finite
from jaxmethods.method import Metrics
from jaxmethods.obd.baselines import random_rows
from jaxmethods.obd.config import OBDConfig, PositiveInt
from jaxmethods.obd.method import State, make_student
from jaxmethods.obd.mujoco_returns import (
    ENVIRONMENTS,
    SPACES,
    check_mujoco,
    evaluate_returns,
)
from jaxmethods.obd.policy import Policy
from jaxmethods.obd.scores import score
from jaxmethods.obd.students import offline_loss, train_students
from jaxmethods.obd.types import Norm, Source, SynSet


class EvaluationConfig(Config):
    """Where students play, how many and how often."""

    environment: str | None = None
    """hopper, halfcheetah or walker2d (MuJoCo, extra `rl`); pendulum, or brax:TASK with one of
    brax's tasks (in JAX; extra `brax`); or null: students don't play, and the offline loss is all
    that is measured."""
    students: PositiveInt = 10
    episodes: PositiveInt = 10
    processes: Annotated[PositiveInt, OnResume.CHANGE] = 1
    """MuJoCo's episodes are spread over so many processes."""
    random_selection: bool = True
    """Measure students of as many random real pairs beside those of the distilled set."""


Play = Callable[[Any, Norm, jax.Array], Any]
"""(params [K], norm, key) -> normalised scores [K, E]."""


def judge(
    evaluation: EvaluationConfig, config: OBDConfig, states: State, source: Source, keys: jax.Array
) -> Metrics:
    """Judges the sets of all seeds; a stage's `judge`.

    Args:
        states: of the distillation, leading axis [seeds].
        source: of all seeds together; what differs between seeds isn't looked at.
        keys: [seeds]; the same keys give the same metrics.

    Returns:
        Metrics [seeds]: offline_loss, the mean squared error of a student's sampled actions
        against all of the data's; where students play score (mean over students and episodes) and
        score_error (standard error over students); the same with `random_` of as many random real
        pairs.
    """
    play = player(evaluation, config)
    rows = [
        _judge_one(evaluation, config, play, SynSet(*syn), int(size), source, key)
        for *syn, size, key in zip(*states.syn, states.rates.size, keys, strict=True)
    ]
    return {name: jnp.array([row[name] for row in rows]) for name in rows[0]}


def _judge_one(
    evaluation: EvaluationConfig,
    config: OBDConfig,
    play: Play | None,
    syn: SynSet,
    size: int,
    source: Source,
    key: jax.Array,
) -> dict[str, float]:
    train_key, loss_key, play_key, row_key = jax.random.split(key, 4)
    train = partial(trained_students, config, evaluation.students)
    sets = {"": SynSet(syn.states[:size], syn.actions[:size])}
    if evaluation.random_selection:
        sets["random_"] = random_rows(row_key, source.data, size)
    metrics: dict[str, float] = {}
    for prefix, pairs in sets.items():
        params = train(train_key, pairs)
        one = jax.tree.map(lambda leaf: leaf[0], params)
        metrics[f"{prefix}offline_loss"] = float(_offline_loss(config, loss_key, one, source))
        if play is not None:
            scores = np.asarray(play(params, source.norm, play_key), float).mean(1)
            spread = scores.std(ddof=1) if len(scores) > 1 else 0.0
            metrics[f"{prefix}score"] = float(scores.mean())
            metrics[f"{prefix}score_error"] = float(spread / len(scores) ** 0.5)
    return metrics


@partial(jax.jit, static_argnums=(0, 1))
def trained_students(config: OBDConfig, students: int, key: jax.Array, syn: SynSet) -> Any:
    """Parameters, leading axis [students], cloned from a set with the distillation's inner loop."""
    optimizer = optax.sgd(config.inner_lr, config.inner_momentum or None)
    policy = make_student(config.student)
    return train_students(
        key, syn, policy, students, optimizer, config.inner_steps, config.inner_noise
    )


@partial(jax.jit, static_argnums=0)
def _offline_loss(config: OBDConfig, key: jax.Array, params: Any, source: Source) -> jax.Array:
    return offline_loss(key, params, source.data, make_student(config.student).sample)


def check_environment(evaluation: EvaluationConfig) -> None:
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


def player(evaluation: EvaluationConfig, config: OBDConfig) -> Play | None:
    """Lets students play; None where they don't (see `check_environment`)."""
    name = evaluation.environment
    if name is None:
        return None
    if name not in ENVIRONMENTS:
        return partial(_play_control, name, make_student(config.student), evaluation.episodes)
    return partial(_play_mujoco, evaluation, config.student.residual)


def _play_mujoco(
    evaluation: EvaluationConfig, residual: bool, params: Any, norm: Norm, key: jax.Array
) -> Any:
    name = str(evaluation.environment)
    seed = int(jax.random.randint(key, (), 0, 2**30))
    returns = evaluate_returns(
        name,
        params,
        norm,
        evaluation.episodes,
        seed=seed,
        residual=residual,
        processes=evaluation.processes,
    )
    return score(name, returns)


def _play_control(
    name: str, policy: Policy, episodes: int, params: Any, norm: Norm, key: jax.Array
) -> Any:
    returns = _control_returns(_environment(name), policy, episodes, params, norm, key)
    return score(name, returns)


@cache
def _environment(name: str) -> Any:
    """Made once and outside of the trace: specs look at their bounds' values."""
    return make_control(name)


@partial(jax.jit, static_argnums=(0, 1, 2))
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
