"""Students at work: compiled once, and worth nothing where their weights are not finite."""

from __future__ import annotations

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.obd import evaluate
from jaxmethods.obd.baselines import random_rows
from jaxmethods.obd.config import OBDConfig, StudentConfig
from jaxmethods.obd.method import make_student
from jaxmethods.obd.students import offline_loss
from jaxmethods.obd.types import Source, SynSet
from jaxmethods.offline_rl.mujoco_returns import evaluate_returns
from jaxmethods.offline_rl.policies import deterministic, tanh_gaussian
from jaxmethods.offline_rl.scores import normalized_score
from jaxmethods.offline_rl.types import Norm, OfflineData

CONFIG = OBDConfig(student=StudentConfig(hidden=7))
PENDULUM = evaluate.EvaluationConfig(environment="pendulum", students=3, episodes=2)
NORM = Norm(jnp.zeros(3), jnp.ones(3))


def students(config=CONFIG, count=3):
    init = make_student(config.student).init
    draw = jax.jit(jax.vmap(lambda key: init(key, 3, 1)))
    return draw(jax.random.split(jax.random.key(0), count))


def played(play, params, seed):
    """Scores [K, E]."""
    return play(params, NORM, jax.random.key(seed))


def test_one_architecture_is_one_policy_however_it_is_asked_for():
    assert tanh_gaussian() is tanh_gaussian(4, hidden=256, residual=False)
    assert deterministic([400, 300]) is deterministic()
    assert make_student(StudentConfig(hidden=7)) is make_student(CONFIG.student)
    assert tanh_gaussian(hidden=7) is not tanh_gaussian(hidden=8)


def test_students_that_play_again_are_not_compiled_again():
    before = evaluate._control_returns._cache_size()
    scores = []
    for seed in (1, 2, 1):
        config = OBDConfig(student=StudentConfig(hidden=7))
        play = evaluate.player(PENDULUM.model_copy(), config)
        scores.append(played(play, students(config), seed))
    assert evaluate._control_returns._cache_size() == before + 1
    np.testing.assert_array_equal(scores[0], scores[2])
    assert np.isfinite(scores[0]).all()
    assert (scores[0] != scores[1]).any()


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["weight", "bias", "log_std"])
def test_a_student_with_a_broken_weight_has_no_score_and_others_keep_theirs(place, value):
    params = students()
    if place == "log_std":  # the deterministic action doesn't read it
        broken = params._replace(log_std_off=params.log_std_off.at[1].set(value))
    else:
        layers = [[*layer] for layer in params.layers]
        leaf = layers[-1][place == "bias"]
        layers[-1][place == "bias"] = leaf.at[1, ..., 0].set(value)
        broken = params._replace(layers=tuple(map(tuple, layers)))
    play = evaluate.player(PENDULUM, CONFIG)
    sound, scores = (played(play, p, 1) for p in (params, broken))
    assert np.isnan(scores[1]).all()
    chex.assert_trees_all_close(scores[[0, 2]], sound[[0, 2]], rtol=1e-5)


@pytest.fixture(scope="module")
def measured():
    """Two seeds' sets, of which the second's has an infinite action; and their keys."""
    keys = jax.random.split(jax.random.key(7), 4)
    data = OfflineData(
        jax.random.normal(keys[0], (9, 3)), jnp.tanh(jax.random.normal(keys[1], (9, 1)))
    )
    syn = SynSet(jax.random.normal(keys[2], (2, 4, 3)), jnp.zeros((2, 4, 1)).at[1, 0].set(jnp.inf))
    source, config = Source(data, NORM), CONFIG.model_copy(update={"inner_steps": 3})
    seeds = jax.random.split(keys[3])
    measure = jax.jit(jax.vmap(partial(evaluate.measure_set, PENDULUM, config), (0, None, 0)))
    return config, source, syn, seeds, jax.device_get(measure(syn, source, seeds))


@pytest.mark.slow
def test_a_set_is_judged_by_its_own_students_and_key(measured):
    """Seed by seed and by hand: the splits of the key are training, loss, play and rows."""
    config, source, syn, seeds, measures = measured
    metrics = evaluate.judge_sets(PENDULUM, config, measures)
    assert list(metrics) == [
        f"{prefix}{name}"
        for prefix in ("", "random_")
        for name in ("offline_loss", "score", "score_error")
    ]
    train_key, loss_key, play_key, row_key = jax.random.split(seeds[0], 4)
    pairs = {
        "": SynSet(*(leaf[0] for leaf in syn)),
        "random_": random_rows(row_key, source.data, 4),
    }
    for prefix, own in pairs.items():
        params = evaluate.trained_students(config, 3, train_key, own)
        play = evaluate.player(PENDULUM, config)
        scores = play.scores(play.measure(params, NORM, play_key)[None])[0].mean(1)
        first = jax.tree.map(lambda leaf: leaf[0], params)
        loss = offline_loss(loss_key, first, source.data, make_student(config.student).sample)
        np.testing.assert_allclose(metrics[f"{prefix}offline_loss"][0], loss, rtol=1e-5)
        np.testing.assert_allclose(metrics[f"{prefix}score"][0], scores.mean(), rtol=1e-3)
        error = scores.std(ddof=1) / 3**0.5
        np.testing.assert_allclose(metrics[f"{prefix}score_error"][0], error, rtol=1e-3)


@pytest.mark.slow
def test_a_set_with_an_infinite_action_has_no_score_and_the_others_have_theirs(measured):
    config, _, _, _, measures = measured
    metrics = evaluate.judge_sets(PENDULUM, config, measures)
    for name in ("offline_loss", "score", "score_error"):
        assert np.isnan(metrics[name][1])
        assert np.isfinite(metrics[name][0])
        assert np.isfinite(metrics[f"random_{name}"]).all()


def test_without_an_environment_only_the_loss_is_measured():
    nowhere = PENDULUM.model_copy(update={"environment": None})
    assert evaluate.player(nowhere, CONFIG) is None
    measures = {"distilled": evaluate.Measured(np.ones(2), None)}
    assert list(evaluate.judge_sets(nowhere, CONFIG, measures)) == ["offline_loss"]


@pytest.mark.slow
def test_mujoco_plays_every_seed_from_its_own_episodes():
    pytest.importorskip("mujoco")
    pytest.importorskip("gymnasium")
    hopper = evaluate.EvaluationConfig(environment="hopper", episodes=2)
    params = jax.vmap(lambda key: make_student(CONFIG.student).init(key, 11, 3))(
        jax.random.split(jax.random.key(0), 2)
    )
    norm, keys = Norm(jnp.zeros(11), jnp.ones(11)), jax.random.split(jax.random.key(1))
    play = evaluate.player(hopper, CONFIG)
    measured = jax.vmap(play.measure, (None, None, 0))(params, norm, keys)
    scores = play.scores(measured)
    assert scores.shape == (2, 2, 2)
    for key, own in zip(keys, scores, strict=True):
        seed = int(jax.random.randint(key, (), 0, 2**30))
        returns = evaluate_returns("hopper", params, norm, 2, seed=seed)
        np.testing.assert_array_equal(own, normalized_score("hopper", returns))
