"""MuJoCo returns: known teachers score what is known of them, however episodes are spread."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxmethods.obd.recipes.teacher_files import load_teacher
from jaxmethods.offline_rl.mujoco_returns import SPACES, evaluate_returns
from jaxmethods.offline_rl.policies import tanh_gaussian
from jaxmethods.offline_rl.scores import REFERENCE, normalized_score
from jaxmethods.offline_rl.types import Norm

DATA = Path(os.environ.get("JAXMETHODS_SHARED", "/nowhere")) / "data" / "d4rl_like"


def students(count: int, residual: bool = False):
    policy = tanh_gaussian(4, 8, residual)
    return jax.vmap(lambda k: policy.init(k, 11, 3))(jax.random.split(jax.random.key(0), count))


NORM = Norm(np.zeros(11, np.float32), np.ones(11, np.float32))


@pytest.mark.parametrize("name", REFERENCE)
def test_the_reference_returns_are_zero_and_a_hundred(name):
    np.testing.assert_allclose(normalized_score(name, np.array(REFERENCE[name])), [0.0, 100.0])


def test_scores_of_an_environment_without_references_are_refused():
    with pytest.raises(ValueError, match="did you mean 'hopper'"):
        normalized_score("hoper", 1.0)


def test_policies_side_by_side_play_as_they_do_alone():
    pytest.importorskip("mujoco")
    params = students(3)
    together = evaluate_returns("hopper", params, NORM, episodes=2, seed=5)
    for index in range(3):
        alone = jax.tree.map(lambda leaf, i=index: leaf[i : i + 1], params)
        np.testing.assert_allclose(
            evaluate_returns("hopper", alone, NORM, episodes=2, seed=5)[0],
            together[index],
            rtol=1e-4,
        )


def test_episode_e_starts_from_seed_plus_e():
    pytest.importorskip("mujoco")
    params = students(1)
    three = evaluate_returns("hopper", params, NORM, episodes=3, seed=0)
    np.testing.assert_allclose(
        evaluate_returns("hopper", params, NORM, episodes=1, seed=2), three[:, 2:], rtol=1e-4
    )
    assert len(np.unique(three)) == 3


def test_an_ensemble_of_equal_policies_plays_like_one():
    pytest.importorskip("mujoco")
    one = students(1)
    copies = jax.tree.map(lambda leaf: np.repeat(leaf, 3, 0), one)
    np.testing.assert_allclose(
        evaluate_returns("hopper", copies, NORM, 2, ensemble=True),
        evaluate_returns("hopper", one, NORM, 2)[0],
        rtol=1e-3,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hopper", "halfcheetah"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_policy_has_no_return_and_others_keep_theirs(name, value):
    """MuJoCo resets a simulation that NaN broke, and HalfCheetah runs on whatever happens."""
    pytest.importorskip("mujoco")
    size, actions = SPACES[name]
    policy = tanh_gaussian(2, 4)
    params = jax.vmap(lambda k: policy.init(k, size, actions))(
        jax.random.split(jax.random.key(0), 2)
    )
    norm = Norm(np.zeros(size, np.float32), np.ones(size, np.float32))
    sound = evaluate_returns(name, params, norm, episodes=1)
    (weights, biases), *rest = params.layers
    broken = params._replace(layers=((weights, biases.at[1, 0].set(value)), *rest))
    returns = evaluate_returns(name, broken, norm, episodes=1)
    assert np.isnan(returns[1]).all()
    np.testing.assert_allclose(returns[0], sound[0], rtol=1e-4)
    assert np.isnan(evaluate_returns(name, broken, norm, episodes=1, ensemble=True)).all()


def test_a_return_is_nan_where_the_observation_is_no_number():
    """A normalization of NaN: the weights are fine, the actions are not."""
    pytest.importorskip("mujoco")
    norm = Norm(np.full(11, np.nan, np.float32), np.ones(11, np.float32))
    assert np.isnan(evaluate_returns("hopper", students(1), norm, episodes=2)).all()


def test_an_unknown_environment_is_named():
    with pytest.raises(ValueError, match="did you mean 'hopper'"):
        evaluate_returns("hoper", students(1), NORM)


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the teachers' files")
@pytest.mark.parametrize(
    ("name", "score", "tolerance"),
    [("hopper", 94.0, 10.0), ("halfcheetah", 48.0, 3.0), ("walker2d", 108.0, 3.0)],
)
def test_teachers_score_what_is_known_of_them(name, score, tolerance):
    pytest.importorskip("mujoco")
    teacher = load_teacher(DATA / f"{name}-calql.npz")
    params = jax.tree.map(lambda leaf: leaf[None], teacher.policy)
    returns = evaluate_returns(name, params, teacher.norm, episodes=10)
    np.testing.assert_allclose(normalized_score(name, returns).mean(), score, atol=tolerance)
