"""Returns stay within their episodes; rows that have no next state are left out."""

from __future__ import annotations

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from jaxmethods.data.offline import FlatDataset
from jaxmethods.obd.offline_rl.transitions import (
    make_transitions,
    return_scale,
    returns_to_go,
    whole_returns,
)
from jaxmethods.obd.types import Norm

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


NORM = Norm(jnp.ones(1), jnp.full(1, 2.0))


def test_with_next_observations_every_row_is_kept_and_normalised():
    data = make_transitions(five_rows(True), NORM)
    np.testing.assert_allclose(data.states[:, 0], (np.arange(5) - 1) / 2)
    np.testing.assert_allclose(data.next_states[:, 0], (np.arange(5) + 9) / 2)
    np.testing.assert_allclose(data.terminals, [0, 1, 0, 0, 0])


def test_without_them_rows_that_nothing_follows_are_left_out():
    data = make_transitions(five_rows(False), NORM)
    np.testing.assert_allclose(data.states[:, 0], (np.array([0, 1, 2]) - 1) / 2)
    np.testing.assert_allclose(data.next_states[[0, 2], 0], (np.array([1, 3]) - 1) / 2)
    np.testing.assert_allclose(data.terminals, [0, 1, 0])


@pytest.mark.parametrize("factor", [1.0, 7.0])
def test_scaled_rewards_span_a_thousand(factor):
    flat = five_rows(True)
    data = make_transitions(flat._replace(rewards=factor * np.float32([1, 2, 3, 4, 5])), NORM)
    scaled = data.episode_returns * return_scale(data)
    np.testing.assert_allclose(scaled.max() - scaled.min(), 1000.0, rtol=1e-5)
