"""Returns, windows, statistics, draws, and tasks side by side."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import vqcd
from jaxmethods.vqcd import metrics
from jaxmethods.vqcd.data import windows
from jaxmethods.vqcd.data.task_data import gather
from tests.vqcd.toy import HORIZON, codes_data

ENDS = np.array([5, 7, 15])


def test_returns_stop_at_the_end_of_an_episode():
    rewards = np.arange(15, dtype=np.float32)
    last = np.isin(np.arange(15), ENDS - 1)
    found = windows.returns_to_go(rewards, last, 0.5)
    np.testing.assert_allclose(found[4], 4)
    np.testing.assert_allclose(found[3], 3 + 0.5 * 4)
    np.testing.assert_allclose(found[5], 5 + 0.5 * 6)
    np.testing.assert_allclose(found[0], sum(0.5**t * t for t in range(5)))


@pytest.mark.parametrize("dtype", ["int32", "bool", "float16", "bfloat16"])
def test_returns_of_narrow_rewards_are_those_of_float32(dtype):
    last = np.arange(3000) == 2999
    for discount in (0.5, 1.0):
        found = windows.returns_to_go(jnp.ones(3000, dtype), last, discount)
        np.testing.assert_array_equal(found, windows.returns_to_go(jnp.ones(3000), last, discount))


def test_equal_returns_are_one_half():
    np.testing.assert_array_equal(windows.min_max(jnp.full(4, 7.0)), np.full(4, 0.5))
    np.testing.assert_array_equal(windows.min_max(jnp.array([1.0, 3.0, 2.0])), [0, 1, 0.5])


def test_windows_stay_within_their_episode():
    starts, episode = windows.window_starts(ENDS, HORIZON)
    begins = np.append(0, ENDS[:-1])
    assert (starts >= begins[episode]).all()
    assert (starts + HORIZON <= ENDS[episode]).all()
    assert len(starts) == 2 + 0 + 5  # the episode of two rows has none
    assert len(set(starts)) == len(starts)


@pytest.mark.parametrize("normalizer", ["gaussian", "limits", "none"])
def test_statistics_are_undone_and_constant_columns_are_kept(normalizer):
    x = np.random.default_rng(0).normal(3, 2, (50, 3)).astype(np.float32)
    x[:, 1] = 4.0
    norm = windows.statistics(x, normalizer)
    rows = windows.normalize(norm, x)
    np.testing.assert_allclose(windows.unnormalize(norm, rows), x, rtol=1e-5)
    assert norm.scale[1] == 1
    if normalizer == "gaussian":
        np.testing.assert_allclose(rows[:, 0].std(), 1, rtol=1e-5)
    if normalizer == "limits":
        np.testing.assert_allclose([rows[:, 0].min(), rows[:, 0].max()], [-1, 1], rtol=1e-5)


@pytest.mark.parametrize("normalizer", ["gaussian", "limits"])
def test_a_column_that_varies_by_rounding_is_a_constant(normalizer):
    x = np.float32([[5.0, 5.0], [np.nextafter(np.float32(5), np.float32(6)), 5.001]])
    norm = windows.statistics(x, normalizer)
    assert norm.scale[0] == 1
    np.testing.assert_allclose(np.abs(windows.normalize(norm, x)[:, 1]), 1, rtol=1e-3)


@pytest.mark.parametrize("count", [1, 2, 7, 64, 100])
def test_an_epoch_visits_every_window_once_in_an_order_of_its_own(count):
    run = jax.jit(windows.permuted)
    walk = run(jax.random.key(0), jnp.arange(3 * count), jnp.int32(count))
    epochs = np.asarray(walk).reshape(3, count)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(count))
    if count > 6:
        assert (epochs[0] != epochs[1]).any()
        assert (epochs[0] != np.arange(count)).any()


def test_permuted_orders_look_random():
    walk = windows.permuted(jax.random.key(1), jnp.arange(1000), jnp.int32(1000))
    assert abs(np.corrcoef(np.arange(1000), walk)[0, 1]) < 0.1
    assert abs(np.corrcoef(walk[:-1], walk[1:])[0, 1]) < 0.1


@pytest.mark.parametrize("permute", [False, True])
def test_draws_are_within_the_real_windows_whatever_is_behind_them(permute):
    key = jax.random.key(0)
    steps = [windows.draw_windows(key, 8, jnp.int32(5), jnp.int32(s), permute) for s in range(5)]
    drawn = np.concatenate(steps)
    assert drawn.max() == 4
    assert drawn.min() == 0
    assert (steps[0] != steps[1]).any()


def test_codes_become_what_they_stand_for():
    data = codes_data(0)
    found = gather(data, jnp.array([3, 10]), HORIZON)
    row = int(data.starts[10]) + 2
    expected = data.state_table[data.states[row].astype(int)].reshape(-1)
    np.testing.assert_array_equal(found.states[1, 2], expected)
    np.testing.assert_array_equal(found.returns, data.returns[jnp.array([3, 10])])


def test_stacked_tasks_keep_their_windows():
    tasks = [codes_data(0), codes_data(1, number=40)]
    stacked = vqcd.stack_tasks(tasks)
    assert stacked.count.tolist() == [57, 37]
    second = jax.tree.map(lambda leaf: leaf[1], stacked)
    jax.tree.map(
        np.testing.assert_array_equal,
        gather(second, jnp.arange(37), HORIZON),
        gather(tasks[1], jnp.arange(37), HORIZON),
    )
    with pytest.raises(ValueError, match="one kind and width"):
        vqcd.stack_tasks([tasks[0], tasks[1]._replace(states=tasks[1].states[:, :2])])


def test_joined_tasks_keep_their_windows_and_numbers():
    tasks = [codes_data(0), codes_data(1, number=40)]
    joined = vqcd.join_tasks(tasks)
    assert int(joined.count) == 57 + 37
    found = gather(joined, jnp.arange(57, 94), HORIZON)
    expected = gather(tasks[1], jnp.arange(37), HORIZON)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert found.task.tolist() == [1] * 37
    for number, total in ((2, 40000), (3, 60000)):
        many = [codes_data(0)._replace(state_table=jnp.zeros((20000, 2)))] * number
        with pytest.raises(ValueError, match=f"at most 32768 codes in all, got {total}"):
            vqcd.join_tasks(many)


def test_the_last_windows_are_kept_for_replay():
    data = codes_data(0)
    kept = vqcd.last_windows(data, share=0.1, least=8)
    assert int(kept.count) == 8
    jax.tree.map(
        np.testing.assert_array_equal,
        gather(kept, jnp.arange(8), HORIZON),
        gather(data, jnp.arange(49, 57), HORIZON),
    )
    assert kept.states.shape[0] == 8 + HORIZON - 1
    assert int(vqcd.last_windows(data, 0.5, 8).count) == 28
    fifty = data._replace(count=jnp.int32(50))
    assert int(vqcd.last_windows(fifty, 0.58, 8).count) == 29


def test_bounds_are_those_of_codes_or_of_the_data():
    low, high = vqcd.bounds(codes_data(0), 1.5)
    np.testing.assert_array_equal(low, np.full(10, -1.5))
    floats = codes_data(0)._replace(states=jnp.array([[0.0, 5.0], [-2.0, 1.0]]), state_table=None)
    low, high = vqcd.bounds(floats, 1.5)
    np.testing.assert_array_equal(low[:2], [-2, 1])
    np.testing.assert_array_equal(high[:3], [0, 5, 1.5])


def test_no_windows_are_refused():
    data = codes_data(0)
    rows = (data.states, data.state_table), (data.actions, data.action_table)
    with pytest.raises(ValueError, match="at least one window"):
        vqcd.task_data(*rows, np.zeros(0, int), np.zeros(60))


def test_a_single_task_forgets_nothing():
    matrix = jnp.array([[3.0]])
    assert metrics.mean_forgetting(matrix) == 0
    assert metrics.forgetting(matrix).tolist() == [0]


def test_metrics_map_over_seeds():
    matrices = jax.random.normal(jax.random.key(0), (4, 3, 3))
    for function in (metrics.final_performance, metrics.forgetting, metrics.mean_forgetting):
        each = jnp.stack([function(matrix) for matrix in matrices])
        np.testing.assert_allclose(function(matrices), each, rtol=1e-5)


def test_rows_that_are_not_finite_have_no_statistics():
    for rows in (np.array([[1.0, np.nan], [2.0, 3.0]]), np.zeros((0, 2))):
        with pytest.raises(ValueError, match="x: expected finite rows"):
            windows.statistics(rows)


def test_a_task_that_is_solved_alone_from_the_start_gains_nothing():
    solved = jnp.ones(3)
    assert metrics.forward_transfer(solved, solved) == 0
    assert metrics.forward_transfer(solved, 0.5 * solved) == 1
    assert metrics.forward_transfer(1.2 * solved, 1.2 * solved) == 0
    for score in (1.0, 1.2):  # forgetting all of it is no gain
        assert jnp.isnan(metrics.forward_transfer(0 * solved, score * solved))
