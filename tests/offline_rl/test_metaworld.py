"""Meta-World's tasks, played by a stand-in, and by Meta-World itself where it is installed."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from jaxmethods.errors import MissingExtraError
from jaxmethods.offline_rl import metaworld
from tests.offline_rl.standin_metaworld import install

pytest.importorskip("mujoco")


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "metaworld", None)
    with pytest.raises(MissingExtraError, match="metaworld"):
        metaworld.check_metaworld("hammer-v3")


def test_an_unknown_task_is_refused(monkeypatch):
    install(monkeypatch)
    with pytest.raises(ValueError, match=r"unknown Meta-World task 'pres-v3'.*press-v3"):
        metaworld.check_metaworld("pres-v3")


def test_episodes_have_places_of_their_own_and_end_where_they_are_solved(monkeypatch):
    install(monkeypatch)
    episodes = metaworld.MetaworldEpisodes("press-v3", 2, seed=0)
    first = episodes.reset()
    assert first.shape == (2, 39)
    assert first[0, 0] != first[1, 0]
    ends = [[episodes.step(index, np.ones(4))[1:] for _ in range(7)] for index in range(2)]
    assert ends[0][:3] == [(0.0, False), (0.0, False), (1.0, True)]
    assert ends[1] == [(0.0, False)] * 6 + [(1.0, True)]


def test_data_end_at_success_or_at_the_limit(monkeypatch):
    install(monkeypatch)
    data = metaworld.metaworld_episodes("press-v3", 2, "medium_expert", seed=0)
    ends = np.flatnonzero(data.terminals | data.timeouts)
    assert len(ends) == 2 * 4
    np.testing.assert_array_equal(data.rewards, data.terminals)
    lengths = np.diff(ends, prepend=-1)
    assert np.all(lengths[data.timeouts[ends]] == metaworld.STEPS)
    # The undisturbed expert's first two episodes.
    assert lengths[:2].tolist() == [3, 7]
    inner = np.setdiff1d(np.arange(len(data.rewards) - 1), ends)
    np.testing.assert_array_equal(data.next_observations[inner], data.observations[inner + 1])
    again = metaworld.metaworld_episodes("press-v3", 2, "medium_expert", seed=0)
    np.testing.assert_array_equal(data.actions, again.actions)


@pytest.mark.slow
def test_metaworlds_own_expert_succeeds():
    pytest.importorskip("metaworld")
    data = metaworld.metaworld_episodes("handle-press-side-v3", 2, "expert", seed=0)
    assert data.observations.shape[1:] == (39,)
    assert data.terminals.sum() >= 2
