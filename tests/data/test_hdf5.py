"""What real HDF5 files hold: other tools' keys, other layouts, episodes of wrong lengths, links."""

from __future__ import annotations

import gzip
import os

import numpy as np
import pytest

from jaxmethods.data.offline import read_offline
from jaxmethods.errors import DataError
from jaxmethods.files import read_npz
from tests.data.test_offline import LENGTHS, A, S, flat, write_d4rl, write_minari, write_npz

h5py = pytest.importorskip("h5py")


def write(folder, content, name="data.hdf5"):
    path = folder / name
    with h5py.File(path, "w") as file:
        for key, value in content.items():
            file[key] = value
    return path


def refusal(path):
    with pytest.raises(DataError) as error:
        read_offline(path)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"data {path}: ")


def episode(steps, reward=1.0, **other):
    last = np.arange(steps) == steps - 1
    return {
        "observations": np.zeros((steps + 1, S)),
        "actions": np.zeros((steps, A)),
        "rewards": np.full(steps, reward),
        "terminations": last,
        "truncations": np.zeros(steps, bool),
    } | other


def write_episodes(folder, *episodes):
    content = {
        f"episode_{number}/{name}": value
        for number, arrays in enumerate(episodes)
        for name, value in arrays.items()
    }
    return write(folder, content, "main_data.hdf5")


@pytest.mark.parametrize("key", ["episode_ends", "episode_returns", "episode_0", "episode_id/0"])
def test_a_flat_file_is_flat_whatever_else_is_in_it(tmp_path, key):
    path = write(tmp_path, flat() | {key: np.array([10, 20])})
    np.testing.assert_array_equal(read_offline(path).rewards, flat()["rewards"])


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (
            {"data/demo_0/obs/x": np.zeros((3, 2)), "mask/train": np.zeros(1)},
            "the file has data, mask, which looks like robomimic",
        ),
        ({"steps/observation": np.zeros((3, 2))}, "the file has steps, which looks like RLDS"),
        ({f"{i:02}": np.zeros(1) for i in range(20)}, "10, 11, 8 more; expected D4RL's"),
        ({"episode_ends": np.zeros(2)}, "the file has episode_ends; expected D4RL's observations"),
        ({"episodes/episode_0/rewards": np.zeros(2)}, "the file has episodes;"),
        ({}, "the file has nothing;"),
    ],
)
def test_other_layouts_are_refused_with_what_they_hold(tmp_path, content, found):
    text = refusal(write(tmp_path, content))
    assert text.startswith("observations: missing; the file has ")
    assert found in text
    assert "Minari's groups episode_0" in text


def test_npz_files_of_other_layouts_are_refused_with_what_they_hold(tmp_path):
    np.savez(tmp_path / "a.npz", obs=np.zeros(3), act=np.zeros(3), rew=np.zeros(3))
    assert "the file has act, obs, rew, which looks like tianshou" in refusal(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("episodes", "reason"),
    [
        # The totals agree, so that each reward of the second would lie in the row of another.
        ([episode(3, rewards=np.ones(4)), episode(3, rewards=np.ones(2))], "0: rewards: expected"),
        (
            [episode(3), episode(3, rewards=np.ones(2))],
            "1: rewards: expected shape (3,)",
        ),
        ([episode(3, truncations=np.zeros(4))], "truncations: expected shape (3,), got (4,)"),
        ([episode(1, truncations=np.zeros(0))], "truncations: expected shape (1,), got (0,)"),
        ([episode(3, terminations=np.zeros((3, 2)))], "terminations: expected shape (3,)"),
        ([episode(3, terminations=[0, 0.5, 1])], "terminations: expected 0 and 1 only, got 0.5"),
        ([episode(3, terminations=[0, 0, np.nan])], "terminations: expected 0 and 1 only, got nan"),
        ([episode(3, actions=np.zeros(3))], "actions: expected shape (3, dimensions), got (3,)"),
        ([episode(3, observations=np.zeros((3, S)))], "expected one more than the 3 actions"),
        ([episode(0), episode(3)], "0: actions: expected at least one step, got none"),
        (
            [episode(3), episode(3, observations=np.zeros((4, S + 1)))],
            f"1: observations: expected {S} dimensions as in the episode before, got {S + 1}",
        ),
        (
            [episode(3, observations=np.zeros((4, 8, 8, 3), np.uint8))],
            "observations: expected shape (rows, dimensions), got (4, 8, 8, 3)",
        ),
        (
            [episode(3, observations=np.zeros((4, S), int))],
            "observations: expected floating numbers, got int64",
        ),
        ([episode(3, rewards=np.array([b"a"] * 3))], "rewards: expected numbers, got"),
        ([episode(3, rewards=1.0)], "rewards: expected an array, got one value"),
        ([episode(3, rewards=h5py.Empty("f4"))], "rewards: expected an array, got an empty one"),
        (
            [episode(3, observations=np.full((4, S), np.nan))],
            "observations: expected finite numbers, got nan in row 0",
        ),
    ],
)
def test_arrays_of_an_episode_have_its_length(tmp_path, episodes, reason):
    text = refusal(write_episodes(tmp_path, *episodes))
    assert text.startswith("episode_")
    assert reason in text


def test_observations_in_several_arrays_are_named(tmp_path):
    path = write_episodes(tmp_path, episode(3))
    with h5py.File(path, "a") as file:
        del file["episode_0/observations"]
        for name in ("position", "velocity"):
            file[f"episode_0/observations/{name}"] = np.zeros((4, S))
    assert "got a group of arrays (position, velocity); flatten" in refusal(path)


def test_an_episode_of_one_step_is_a_row(tmp_path):
    found = read_offline(write_episodes(tmp_path, episode(1, 1.0), episode(2, 2.0)))
    assert list(found.rewards) == [1.0, 2.0, 2.0]
    assert list(found.terminals) == [True, False, True]


def test_episodes_of_one_step_that_leave_no_row_are_refused(tmp_path):
    """Their statistics would be means of nothing."""
    cut = episode(1, terminations=[False], truncations=[True])
    text = refusal(write_episodes(tmp_path, *[cut] * 4))
    assert "timeouts: expected a row that no time limit cuts off before the last of the 4" in text


def test_groups_that_are_no_episodes_are_named_and_arrays_let_be(tmp_path):
    path = write_episodes(tmp_path, episode(3))
    with h5py.File(path, "a") as file:
        file["episode_ends"] = np.array([3])
        file["metadata/x"] = 1
    assert len(read_offline(path).rewards) == 3
    with h5py.File(path, "a") as file:
        file.move("episode_0", "episode_0a")
        file["episode_1/rewards"] = np.zeros(3)
    assert refusal(path).startswith("episode_0a: expected episode_ and a number")


def test_links_lead_to_files_of_the_same_folder_and_no_further(tmp_path):
    """Minari itself spreads a dataset over several files of a folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder, {}, "main_data.hdf5")
    whole = write_minari(folder)
    with h5py.File(whole) as file:
        expected = read_offline(whole)
        with h5py.File(folder / "additional_data_0.hdf5", "w") as other:
            file.copy("episode_1", other, "episode_1")
    with h5py.File(whole, "a") as file:
        del file["episode_1"]
        file["episode_1"] = h5py.ExternalLink("additional_data_0.hdf5", "/episode_1")
        file["episode_0/moved"] = file["episode_0/rewards"]
        del file["episode_0/rewards"]
        file["episode_0/rewards"] = h5py.SoftLink("/episode_0/moved")
    for ours, theirs in zip(read_offline(whole), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    os.symlink(whole, tmp_path / "linked.hdf5")
    assert len(read_offline(tmp_path / "linked.hdf5").rewards) == sum(LENGTHS)
    (folder / "additional_data_0.hdf5").rename(tmp_path / "away.hdf5")
    text = refusal(whole)
    assert "episode_1: is a link to additional_data_0.hdf5:/episode_1, which leads nowhere" in text
    with h5py.File(whole, "a") as file:
        del file["episode_1"]
        file["episode_1"] = h5py.ExternalLink("../away.hdf5", "/episode_1")
    away = f"episode_1: is a link to {tmp_path / 'away.hdf5'}, outside of the folder of the file"
    assert refusal(whole).startswith(away)


@pytest.mark.parametrize(
    "link",
    [h5py.SoftLink("/nowhere"), h5py.SoftLink("/rewards"), h5py.ExternalLink("no.h5", "/nowhere")],
)
def test_links_that_lead_nowhere_are_named(tmp_path, link):
    path = write(tmp_path, flat() | {"rewards": link})
    assert "rewards: is a link to" in refusal(path)
    assert f"{link.path}, which leads nowhere" in refusal(path)


def test_arrays_that_lie_in_other_files_are_refused(tmp_path):
    (tmp_path / "raw.bin").write_bytes(np.ones(21, np.float32).tobytes())
    path = write(tmp_path, {k: v for k, v in flat().items() if k != "rewards"})
    with h5py.File(path, "a") as file:
        external = [(str(tmp_path / "raw.bin"), 0, 84)]
        file.create_dataset("rewards", (21,), "f4", external=external)
    assert "rewards: lies in other files" in refusal(path)
    with h5py.File(path, "a") as file:
        del file["rewards"]
        layout = h5py.VirtualLayout((21,), "f4")
        layout[:] = h5py.VirtualSource("absent.hdf5", "rewards", (21,))
        file.create_virtual_dataset("rewards", layout)
    assert "rewards: lies in other files (absent.hdf5)" in refusal(path)


def test_a_group_where_an_array_should_be_is_named(tmp_path):
    path = write(tmp_path, {k: v for k, v in flat().items() if k != "actions"} | {"actions/a": 1.0})
    assert refusal(path).startswith("actions: expected an array, got a group of arrays (a)")


def test_compressed_arrays_are_read_and_damaged_ones_named(tmp_path):
    path = tmp_path / "data.hdf5"
    with h5py.File(path, "w") as file:
        for name, values in flat().items():
            file.create_dataset(name, data=values, compression="gzip", chunks=True)
        offset = file["rewards"].id.get_chunk_info(0).byte_offset
    np.testing.assert_array_equal(read_offline(path).rewards, flat()["rewards"])
    content = bytearray(path.read_bytes())
    content[offset : offset + 8] = b"damaged!"
    path.write_bytes(content)
    assert refusal(path).startswith("rewards: cannot be read (")


def test_files_and_folders_of_other_kinds_say_what_they_are(tmp_path):
    path = write_d4rl(tmp_path)
    packed = tmp_path / "packed.hdf5"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert refusal(packed).startswith("cannot be read as HDF5 (")
    folder = tmp_path / "tfds"
    folder.mkdir()
    for name in ("features.json", "dataset_info.json"):
        (folder / name).write_text("{}")
    reason = "expected a file, or a folder of Minari with main_data.hdf5; the folder has "
    assert refusal(folder) == f"{reason}dataset_info.json, features.json"


def test_an_array_that_would_be_unpickled_is_named(tmp_path):
    path = write_npz(tmp_path, timeouts=np.array([None] * 21, dtype=object))
    assert refusal(path).startswith("cannot be read as npz (timeouts: Object arrays cannot be")
    assert read_npz(path, ("rewards",)).keys() == {"rewards"}
