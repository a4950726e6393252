"""Students at work: compiled once, and worth nothing where their weights are not finite."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.obd import evaluate
from jaxmethods.obd.config import OBDConfig, StudentConfig
from jaxmethods.obd.method import make_student
from jaxmethods.obd.policy import deterministic, tanh_gaussian
from jaxmethods.obd.types import Norm

CONFIG = OBDConfig(student=StudentConfig(hidden=7))
PENDULUM = evaluate.EvaluationConfig(environment="pendulum", students=3, episodes=2)
NORM = Norm(jnp.zeros(3), jnp.ones(3))


def students(config=CONFIG, count=3):
    init = make_student(config.student).init
    return jax.vmap(lambda key: init(key, 3, 1))(jax.random.split(jax.random.key(0), count))


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
        scores.append(play(students(config), NORM, jax.random.key(seed)))
    assert evaluate._control_returns._cache_size() == before + 1
    np.testing.assert_array_equal(scores[0], scores[2])
    assert np.isfinite(scores[0]).all()
    assert (scores[0] != scores[1]).any()


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
    sound, scores = (np.asarray(play(p, NORM, jax.random.key(1))) for p in (params, broken))
    assert np.isnan(scores[1]).all()
    chex.assert_trees_all_close(scores[[0, 2]], sound[[0, 2]], rtol=1e-5)
