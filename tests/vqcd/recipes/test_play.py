"""Which episodes stay in the batch, and MuJoCo's episodes from the same keys."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmethods
from jaxmethods.vqcd import PolicyConfig, initial_bank, task_weights
from jaxmethods.vqcd.config import Run
from jaxmethods.vqcd.recipes.play import _remaining, _stacked, play
from jaxmethods.vqcd.recipes.tasks import Tasks
from tests.offline_rl.standin_metaworld import install
from tests.vqcd.recipes.tiny import values
from tests.vqcd.toy import ACTIONS, PERCEPTRON, STATES, space


def test_the_batch_shrinks_once_to_a_quarter_that_holds_all_unfinished_episodes():
    running = np.ones(10, bool)
    running[[0, 3, 4, 5, 6]] = False
    np.testing.assert_array_equal(_remaining(running, np.arange(10)), np.arange(10))
    running[[1, 2]] = False  # 7, 8 and 9 are left
    np.testing.assert_array_equal(_remaining(running, np.arange(10)), [7, 8, 9])
    running[8] = False
    kept = _remaining(running, np.array([7, 8, 9]))
    np.testing.assert_array_equal(kept, [0, 1, 2])


def test_fewer_unfinished_episodes_than_a_quarter_are_filled_up_with_finished_ones():
    running = np.zeros(8, bool)
    running[6] = True
    kept = _remaining(running, np.arange(8))
    assert len(kept) == 2
    assert 6 in kept


def test_episodes_of_seeds_are_stacked_by_repeating_the_last_row():
    stacked = _stacked([np.arange(2.0)[:, None], np.arange(4.0)[:, None]])
    np.testing.assert_array_equal(stacked[..., 0], [[0, 1, 1, 1], [0, 1, 2, 3]])


@pytest.mark.slow
def test_a_planner_with_a_broken_weight_has_no_return_and_other_seeds_keep_theirs():
    """What it does may be numbers all the same: a state that is none has a nearest code."""
    config = PolicyConfig(planner=PERCEPTRON, states=STATES, actions=ACTIONS)
    run = Run.model_validate(
        values(
            tasks=[
                {
                    "name": "system",
                    "generate": "medium",
                    "environment": {"name": "linear", "states": 5, "actions": 2, "time_limit": 3},
                }
            ],
            learners=["vqcd"],
        )
    )
    bank = initial_bank(jax.random.key(0), PERCEPTRON)
    weights = task_weights(PERCEPTRON, bank, 1)
    one = space(1)
    seeds = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), (weights, one))
    weights, many = seeds
    many = many._replace(states=one.states, actions=one.actions)
    first = many.state_module["encoder"]["dense0"]
    first["bias"] = first["bias"].at[1].set(jnp.nan)
    last = weights.inverse["dense2"]
    last["bias"] = last["bias"].at[2, 0].set(jnp.inf)
    keys = jnp.stack([jax.random.key(5)] * 3)
    found = play(Tasks(run), config, 0, weights, many, 0.5, keys).returns
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1:]).all()


@pytest.mark.slow
def test_mujoco_plays_the_same_episodes_again(tmp_path):
    pytest.importorskip("gymnasium.envs.mujoco")
    pytest.importorskip("mujoco")
    draw = np.random.default_rng(0)
    rows = 120
    path = tmp_path / "reacher.npz"
    np.savez(
        path,
        observations=draw.normal(size=(rows, 10)).astype(np.float32),
        actions=draw.uniform(-1, 1, (rows, 2)).astype(np.float32),
        rewards=draw.normal(size=rows).astype(np.float32),
        terminals=np.zeros(rows, bool),
        timeouts=np.arange(rows) % 20 == 19,
    )
    task = {"name": "reacher", "path": str(path), "environment": "reacher"}
    changes = {"tasks": [task], "learners": ["vqcd"], "evaluation": {"episodes": 3, "steps": 6}}
    first, second = (
        jaxmethods.run(values(**changes), tmp_path / name).results["score_vqcd_reacher"]["reacher"]
        for name in ("one", "two")
    )
    assert first.played.returns.shape == (2, 3)
    assert np.all(first.played.lengths == 6)
    np.testing.assert_array_equal(first.played.returns, second.played.returns)


@pytest.mark.slow
def test_metaworld_scores_the_share_of_episodes_that_succeed(tmp_path, monkeypatch):
    pytest.importorskip("mujoco")
    install(monkeypatch)
    task = {"name": "press", "generate": "expert", "environment": "metaworld:press-v3"}
    changes = {
        "tasks": [task],
        "seeds": 1,
        "learners": ["vqcd"],
        "alignment": {"states": {"kind": "none"}, "actions": {"kind": "none"}},
        "evaluation": {"episodes": 5, "steps": 40},
    }
    run = jaxmethods.run(values(**changes), tmp_path / "run")
    played = run.results["score_vqcd_press"]["press"].played
    solved = played.returns[0] == 1.0
    np.testing.assert_array_equal(played.returns[0], solved)
    np.testing.assert_array_equal(solved, played.lengths[0] < 40)
    np.testing.assert_allclose(run.metrics["summary"]["vqcd_final"], [100.0 * solved.mean()])
