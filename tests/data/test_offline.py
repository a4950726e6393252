"""Offline data: three formats with the same content are the same; what can't be true is refused."""

from __future__ import annotations

import numpy as np
import pytest

from jaxmethods.data.offline import (
    FlatDataset,
    episode_ends,
    flat_dataset,
    q_learning_rows,
    read_offline,
)
from jaxmethods.errors import DataError
from jaxmethods.files import read_npz
from jaxmethods.offline_rl.dataset import load_offline, offline_data

S, A = 4, 2
LENGTHS = (7, 5, 9)
FAILED = (True, False, True)


def episodes():
    """(observations [T + 1, S], actions, rewards, failed) of each episode."""
    rng = np.random.default_rng(0)
    return [
        (
            rng.normal(size=(length + 1, S)).astype(np.float32),
            rng.uniform(-1, 1, (length, A)).astype(np.float32),
            rng.normal(size=length).astype(np.float32),
            failed,
        )
        for length, failed in zip(LENGTHS, FAILED, strict=True)
    ]


def flat():
    """The episodes in D4RL's layout."""
    ends = [np.arange(len(a)) == len(a) - 1 for _, a, _, _ in episodes()]
    failed = [f for *_, f in episodes()]
    return {
        "observations": np.concatenate([o[:-1] for o, *_ in episodes()]),
        "actions": np.concatenate([a for _, a, _, _ in episodes()]),
        "rewards": np.concatenate([r for _, _, r, _ in episodes()]),
        "terminals": np.concatenate([e & f for e, f in zip(ends, failed, strict=True)]),
        "timeouts": np.concatenate([e & (not f) for e, f in zip(ends, failed, strict=True)]),
        "next_observations": np.concatenate([o[1:] for o, *_ in episodes()]),
    }


def write_npz(folder, **changes):
    path = folder / "data.npz"
    arrays = {k: v for k, v in (flat() | changes).items() if v is not None}
    np.savez(path, **arrays)
    return path


def write_d4rl(folder):
    h5py = pytest.importorskip("h5py")
    path = folder / "d4rl.hdf5"
    with h5py.File(path, "w") as file:
        for name, values in flat().items():
            file[name] = values
        file["metadata/algorithm"] = "SAC"
    return path


def write_minari(folder):
    h5py = pytest.importorskip("h5py")
    path = folder / "main_data.hdf5"
    with h5py.File(path, "w") as file:
        # Written in another order than their numbers, which a reader must follow.
        for number in reversed(range(len(LENGTHS))):
            observations, actions, rewards, failed = episodes()[number]
            group = file.create_group(f"episode_{number}")
            last = np.arange(len(actions)) == len(actions) - 1
            group["observations"], group["actions"] = observations, actions
            group["rewards"] = rewards.astype(np.float64)
            group["terminations"], group["truncations"] = last & failed, last & (not failed)
    return path


@pytest.mark.parametrize("write", [write_npz, write_d4rl, write_minari])
def test_all_formats_give_the_same_data(tmp_path, write):
    found = read_offline(write(tmp_path))
    for name, values in flat().items():
        np.testing.assert_array_equal(getattr(found, name), values, err_msg=name)
    data, norm = load_offline(write(tmp_path))
    expected, expected_norm = load_offline(write_npz(tmp_path))
    for ours, theirs in zip((*data[:2], *norm), (*expected[:2], *expected_norm), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_folder_of_minari_is_read(tmp_path):
    (tmp_path / "data").mkdir()
    write_minari(tmp_path / "data")
    assert len(read_offline(tmp_path).rewards) == sum(LENGTHS)


def test_rows_leave_out_time_limits_and_the_last_row(tmp_path):
    rows = q_learning_rows(read_offline(write_npz(tmp_path)))
    assert list(rows.index) == [i for i in range(sum(LENGTHS) - 1) if i != 11]
    without = q_learning_rows(read_offline(write_npz(tmp_path, next_observations=None)))
    inside = ~rows.terminals
    np.testing.assert_array_equal(rows.next_observations[inside], without.next_observations[inside])


def test_ends_that_are_not_marked_are_seen_in_the_next_observations(tmp_path):
    """The first episode's end isn't flagged: what its last row reached, the next never saw."""
    whole = read_offline(write_npz(tmp_path))
    unmarked = flat()["terminals"] & (np.arange(21) != 6)
    found = read_offline(write_npz(tmp_path, terminals=unmarked))
    np.testing.assert_array_equal(episode_ends(found), episode_ends(whole))
    assert list(np.flatnonzero(episode_ends(found))) == [6, 11, 20]
    # D4RL's protocol goes by the flags: the row stays one that is learned from.
    np.testing.assert_array_equal(q_learning_rows(found).index, q_learning_rows(whole).index)


def test_rounding_of_large_observations_is_no_end(tmp_path):
    large = flat()["next_observations"] * 1e4 + 1e5
    observations = flat()["observations"] * 1e4 + 1e5
    observations = np.nextafter(observations, np.float32(np.inf))
    path = write_npz(tmp_path, observations=observations, next_observations=large)
    assert list(np.flatnonzero(episode_ends(read_offline(path)))) == [6, 11, 20]


def test_returns_need_rows_in_the_order_of_time():
    rng = np.random.default_rng(0)
    steps = np.arange(301, dtype=np.float32)[:, None]
    order = rng.permutation(300)
    arrays = {
        "observations": steps[:-1][order],
        "next_observations": steps[1:][order],
        "actions": np.zeros((300, 1), np.float32),
        "rewards": np.ones(300),
        "terminals": np.zeros(300, bool),
        "timeouts": np.zeros(300, bool),
    }
    shuffled = flat_dataset(arrays)
    with pytest.raises(DataError, match=r"next_observations: expected what the next row observes"):
        episode_ends(shuffled)
    assert len(q_learning_rows(shuffled).index) == 299  # whose order doesn't matter


def test_no_statistics_are_made_of_no_rows():
    with pytest.raises(DataError, match="expected a row that no time limit cuts off, got none"):
        offline_data(FlatDataset(*flat_dataset(flat())[:4], np.ones(21, bool), None))


def test_normalized_states_have_mean_zero_and_deviation_just_below_one(tmp_path):
    data, norm = load_offline(write_npz(tmp_path))
    states = np.asarray(data.states, np.float64)
    np.testing.assert_allclose(states.mean(0), 0.0, atol=1e-6)
    std = np.asarray(norm.std, np.float64)
    np.testing.assert_allclose(states.std(0), (std - 1e-3) / std, rtol=1e-5)


def nan_at(row):
    observations = flat()["observations"].copy()
    observations[row, 1] = np.nan
    return observations


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"observations": nan_at(3)}, "observations: expected finite numbers, got nan in row 3"),
        ({"actions": 2 * flat()["actions"]}, r"actions: expected within \[-1, 1\], got 1\.9"),
        ({"actions": flat()["actions"][:-1]}, r"actions: expected shape \(21, dimensions\)"),
        ({"observations": flat()["observations"].ravel()}, r"observations: expected shape"),
        ({"observations": np.ones((21, S), int)}, "expected floating numbers, got int64"),
        ({"rewards": None}, "rewards: missing; the file has actions, next_observations"),
        ({"rewards": np.full(21, np.inf)}, "rewards: expected finite numbers, got inf in row 0"),
        (
            {"rewards": np.full(21, 1e300)},
            r"rewards: expected finite numbers, got 1e\+300",
        ),
        ({"rewards": np.full(21, 1j)}, "rewards: expected numbers, got complex128"),
        ({"observations": np.ones((0, S))}, "observations: expected at least 2 rows, got 0"),
        ({"observations": np.ones((21, 0))}, r"observations: expected shape \(rows, dimensions\)"),
        ({"timeouts": np.ones(21)}, "timeouts: expected a row that no time limit cuts off before"),
        ({"timeouts": np.full(21, np.nan)}, "timeouts: expected 0 and 1 only, got nan"),
        ({"terminals": np.full(21, 0.5)}, "terminals: expected 0 and 1 only, got 0.5"),
        ({"timeouts": np.zeros(20)}, r"timeouts: expected shape \(21,\), got \(20,\)"),
        ({"terminals": np.full(21, "a")}, "terminals: expected numbers, got <U1"),
        ({"next_observations": np.ones((21, 3))}, "next_observations: expected shape"),
    ],
)
def test_what_cannot_be_true_is_refused(tmp_path, changes, reason):
    path = write_npz(tmp_path, **changes)
    with pytest.raises(DataError, match=reason):
        read_offline(path)


def test_files_of_no_known_kind_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_offline(tmp_path / "none.npz")
    other = tmp_path / "data.csv"
    other.write_text("1,2")
    with pytest.raises(DataError, match=r"expected a .npz, .hdf5 or .h5 file"):
        read_offline(other)


@pytest.mark.parametrize("write", [write_npz, write_d4rl])
def test_damaged_files_are_refused(tmp_path, write):
    path = write(tmp_path)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"nothing of the kind"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="cannot be read as"):
            read_offline(path)


def test_pickles_are_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    path = write_npz(tmp_path, rewards=np.array([Trap()] * 21, dtype=object))
    with pytest.raises(DataError, match="cannot be read as npz"):
        read_npz(path)


def test_minari_episodes_must_have_one_observation_more_than_actions(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = write_minari(tmp_path)
    with h5py.File(path, "a") as file:
        del file["episode_1/observations"]
        file["episode_1/observations"] = np.zeros((5, S), np.float32)
    with pytest.raises(DataError, match="episode_1: observations: expected one more than the 5"):
        read_offline(path)


def test_an_unfinished_minari_episode_counts_as_cut_off(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = write_minari(tmp_path)
    with h5py.File(path, "a") as file:
        file["episode_0/terminations"][...] = False
    found = read_offline(path)
    assert found.timeouts[LENGTHS[0] - 1]
    assert not found.terminals[LENGTHS[0] - 1]
