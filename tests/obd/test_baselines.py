"""Selections take different rows of the right kind; cloning follows the data."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.obd.baselines import cloning, cluster_rows, random_rows, top_rows
from jaxmethods.obd.config import CloningConfig
from jaxmethods.offline_rl.policies import tanh_gaussian
from jaxmethods.offline_rl.types import OfflineData

ROWS = 200
DATA = OfflineData(
    jnp.arange(ROWS, dtype=jnp.float32)[:, None], jnp.linspace(-1.0, 1.0, ROWS)[:, None]
)


def chosen(syn) -> np.ndarray:
    """Row numbers of a selection; its actions must be those of the same rows."""
    rows = np.asarray(syn.states[:, 0]).astype(int)
    np.testing.assert_array_equal(syn.actions, DATA.actions[rows])
    assert len(set(rows)) == len(rows)
    return rows


def test_random_rows_are_different_and_change_with_the_key():
    first, second = (chosen(random_rows(jax.random.key(k), DATA, 20)) for k in (0, 1))
    assert set(first) != set(second)


def test_top_rows_come_from_the_best_share():
    score = -jnp.abs(jnp.arange(ROWS) - 50.0)
    rows = chosen(top_rows(jax.random.key(0), DATA, score, 10, share=0.1))
    assert np.all(np.abs(rows - 50) <= 10)
    assert len(chosen(top_rows(jax.random.key(0), DATA, score, 30, share=0.01))) == 30


def test_cluster_rows_cover_clusters_that_random_rows_would_miss():
    """99 % of the rows are in one heap, one row in each of two others far away."""
    states = jnp.concatenate([jnp.zeros((ROWS - 2, 1)), jnp.array([[1e3], [-1e3]])])
    data = OfflineData(states + 1e-3 * DATA.states, DATA.actions)
    found = [
        np.abs(np.asarray(cluster_rows(jax.random.key(k), data, 60).states)).max() for k in range(5)
    ]
    assert np.mean(np.array(found) > 900) >= 0.4


def test_cloning_learns_the_datas_actions():
    policy = tanh_gaussian(3, 16)
    data = OfflineData((DATA.states - 100) / 60, 0.8 * DATA.actions)
    method = cloning(CloningConfig(batch=64, learning_rate=1e-2, noise=0.0), policy)

    @jax.jit
    def run(key, data):
        state = method.init(key, data)
        return jax.lax.scan(lambda s, _: method.step(s, data), state, length=200)

    state, _ = run(jax.random.key(0), data)
    error = jnp.mean(jnp.square(policy.mode(state.params, data.states) - data.actions))
    assert float(error) < 0.01


def test_rows_without_a_score_are_not_the_best():
    score = jnp.where(jnp.arange(ROWS) < 100, jnp.nan, -jnp.arange(ROWS, dtype=jnp.float32))
    rows = chosen(top_rows(jax.random.key(0), DATA, score, 10, share=0.05))
    np.testing.assert_array_equal(sorted(rows), np.arange(100, 110))
