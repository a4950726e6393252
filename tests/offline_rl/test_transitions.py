"""Returns stay within their episodes; rows that have no next state are left out."""

from __future__ import annotations

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from jaxmethods.data.offline import FlatDataset
from jaxmethods.errors import DataError
from jaxmethods.offline_rl.transitions import (
    make_transitions,
    return_scale,
    returns_to_go,
    whole_returns,
)
from jaxmethods.offline_rl.types import Norm

rewards_and_ends = st.lists(
    st.tuples(st.floats(-5.0, 5.0, width=32), st.booleans()), min_size=12, max_size=12
)


@given(rewards_and_ends, st.floats(0.0, 1.0, width=32))
@settings(max_examples=25)
def test_returns_are_the_discounted_sums_to_the_episodes_end(rows, discount):
    rewards, ends = map(np.array, zip(*rows, strict=True))
    expected = np.zeros(len(rows))
    for start in range(len(rows)):
        factor = 1.0
        for step in range(start, len(rows)):
            expected[start] += factor * rewards[step]
            factor *= discount
            if ends[step]:
                break
    got = returns_to_go(np.float32(rewards), ends, discount)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_returns_stop_at_ends_that_are_not_marked():
    """The end of the first of two episodes shows in what its last row reached only."""
    observations = np.array([[0.0], [1.0], [2.0], [50.0], [51.0], [52.0]], np.float32)
    nothing, last = np.zeros(6, bool), np.arange(6) == 5
    rewards = np.float32([1, 1, 1, 100, 100, 100])
    actions = np.zeros((6, 1), np.float32)
    flat = FlatDataset(observations, actions, rewards, nothing, last, observations + 1)
    data = make_transitions(flat, Norm(jnp.zeros(1), jnp.ones(1)), discount=0.5)
    np.testing.assert_allclose(data.returns, [1.75, 1.5, 1, 175, 150, 100])
    np.testing.assert_allclose(data.episode_returns, [3, 3, 3, 300, 300, 300])
    assert np.all(np.asarray(data.terminals) == 0)  # it was cut off, and bootstraps


def test_returns_of_a_million_rewards_lose_no_digits():
    """A float32 sum of them is off by one percent."""
    rewards, ends = np.full(1_000_000, 0.1, np.float32), np.zeros(1_000_000, bool)
    right = np.arange(1_000_000, 0, -1) * np.float64(np.float32(0.1))
    np.testing.assert_allclose(returns_to_go(rewards, ends, 1.0), right, rtol=1e-7)
    np.testing.assert_allclose(whole_returns(rewards, ends), right[0], rtol=1e-7)


@pytest.mark.parametrize("dtype", ["int32", "bool", "float16", "bfloat16"])
def test_returns_of_narrow_rewards_are_those_of_float32(dtype):
    ends = np.arange(3000) == 2999
    for returns in (lambda x: returns_to_go(x, ends, 0.5), lambda x: whole_returns(x, ends)):
        np.testing.assert_array_equal(returns(jnp.ones(3000, dtype)), returns(jnp.ones(3000)))


def test_every_row_knows_its_whole_episodes_return():
    rewards = np.float32([1, 2, 3, 4, 5])
    ends = np.array([False, True, False, False, True])
    np.testing.assert_allclose(whole_returns(rewards, ends), [3, 3, 12, 12, 12])


def five_rows(following: bool) -> FlatDataset:
    observations = np.arange(5, dtype=np.float32)[:, None]
    return FlatDataset(
        observations,
        np.zeros((5, 1), np.float32),
        np.ones(5, np.float32),
        np.array([False, True, False, False, False]),
        np.array([False, False, False, True, False]),
        observations + 10 if following else None,
    )


def test_without_a_row_that_another_follows_there_is_nothing_to_learn_from():
    flat = five_rows(False)._replace(terminals=np.zeros(5, bool), timeouts=np.ones(5, bool))
    with pytest.raises(DataError, match="no row of an episode is followed by another"):
        make_transitions(flat, NORM)


NORM = Norm(jnp.ones(1), jnp.full(1, 2.0))


def test_with_next_observations_every_row_is_kept_and_normalized():
    data = make_transitions(five_rows(True), NORM)
    np.testing.assert_allclose(data.states[:, 0], (np.arange(5) - 1) / 2)
    np.testing.assert_allclose(data.next_states[:, 0], (np.arange(5) + 9) / 2)
    np.testing.assert_allclose(data.terminals, [0, 1, 0, 0, 0])


def test_without_them_rows_that_nothing_follows_are_left_out():
    data = make_transitions(five_rows(False), NORM)
    np.testing.assert_allclose(data.states[:, 0], (np.array([0, 1, 2]) - 1) / 2)
    np.testing.assert_allclose(data.next_states[[0, 2], 0], (np.array([1, 3]) - 1) / 2)
    np.testing.assert_allclose(data.terminals, [0, 1, 0])


def test_next_observations_of_another_episode_are_not_bootstrapped_from():
    """Some writers take the next row's observation whatever ends an episode."""
    flat = five_rows(True)
    shifted = np.roll(flat.observations, -1, axis=0)
    with_them = make_transitions(flat._replace(next_observations=shifted), NORM)
    without = make_transitions(five_rows(False), NORM)
    jax.tree.map(np.testing.assert_array_equal, with_them, without)


@pytest.mark.parametrize("factor", [1.0, 7.0])
def test_scaled_rewards_span_a_thousand(factor):
    flat = five_rows(True)
    data = make_transitions(flat._replace(rewards=factor * np.float32([1, 2, 3, 4, 5])), NORM)
    scaled = data.episode_returns * return_scale(data)
    np.testing.assert_allclose(scaled.max() - scaled.min(), 1000.0, rtol=1e-5)


@pytest.mark.parametrize("returns", [[1.0] * 5, [0.0] * 5, [100.0, 100.00001, 100.0, 100.0, 100.0]])
def test_equal_returns_leave_rewards_as_they_are(returns):
    """Up to rounding, there is nothing to span."""
    flat = five_rows(True)
    data = make_transitions(flat._replace(terminals=np.ones(5, bool)), NORM)
    data = data._replace(episode_returns=jnp.float32(returns))
    assert float(return_scale(data)) == 1.0


def test_one_episode_leaves_rewards_as_they_are():
    flat = five_rows(False)._replace(terminals=np.zeros(5, bool), timeouts=np.zeros(5, bool))
    assert float(return_scale(make_transitions(flat, NORM))) == 1.0


def test_small_returns_span_a_thousand_too():
    data = make_transitions(five_rows(True), NORM)
    data = data._replace(episode_returns=jnp.float32([0, 1e-9, 0, 0, 1e-9]))
    np.testing.assert_allclose(return_scale(data), 1e12, rtol=1e-5)
