"""Offline reinforcement-learning data: D4RL HDF5, Minari HDF5, and npz with D4RL's names.

Whatever the file, the result is flat arrays, whole episodes one after another, checked: shapes
that fit each other, finite numbers, flags that are flags, actions within [-1, 1]. Reading never
runs code that a file brings along, and opens no file outside of the data's own folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmethods.errors import DataError
from jaxmethods.files import read_npz

REQUIRED = ("observations", "actions", "rewards", "terminals", "timeouts")
OPTIONAL = ("next_observations",)
ACTION_TOLERANCE = 1e-4
"""How far recorded actions may leave [-1, 1] by rounding."""
CONTINUITY = 1e-6
"""How far the observation that a row reached may be from the next row's by rounding, relative to
its size where that is above 1."""
SHUFFLED = 100
"""From this many unmarked ends on, more of them than not mean that the rows are in no order."""
OTHER_LAYOUTS = {
    "robomimic": {"data"},
    "RLDS": {"steps"},
    "tianshou": {"obs", "act", "rew"},
    "imitation": {"obs", "acts"},
}
"""Layouts that are not read, by names that only they have."""


class FlatDataset(NamedTuple):
    """L steps in D4RL's layout and names, as the simulator gave them."""

    observations: np.ndarray
    """[L, S] float32, before the step."""
    actions: np.ndarray
    """[L, A] float32 in [-1, 1]."""
    rewards: np.ndarray
    """[L] float32"""
    terminals: np.ndarray
    """[L] bool: the episode failed (or succeeded) here; nothing follows."""
    timeouts: np.ndarray
    """[L] bool: the episode was cut off here."""
    next_observations: np.ndarray | None = None
    """[L, S] float32; None where the file has none."""


class Rows(NamedTuple):
    """The transitions that offline reinforcement learning uses of a `FlatDataset`."""

    index: np.ndarray
    """[K] their places in the flat arrays."""
    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminals: np.ndarray


def read_offline(path: Path | str) -> FlatDataset:
    """Reads a dataset: npz, D4RL HDF5, or Minari HDF5 (`main_data.hdf5` or its folder).

    Raises:
        DataError: the file is missing, damaged, of another kind, or what is in it can't be true.
        MissingExtraError: an HDF5 file, and h5py is not installed.
    """
    path = dataset_file(path)
    if not path.is_file():
        raise DataError(f"data {path}: no such file")
    if path.suffix == ".npz":
        check = partial(check_names, source=str(path))
        arrays = read_npz(path, (*REQUIRED, *OPTIONAL), check)
        return flat_dataset(arrays, str(path))
    if path.suffix in (".hdf5", ".h5"):
        # Here, because h5py is optional and that module stands on this one.
        from jaxmethods.data.hdf5 import read_hdf5

        return flat_dataset(read_hdf5(path), str(path))
    raise DataError(f"data {path}: expected a .npz, .hdf5 or .h5 file")


def dataset_file(path: Path | str) -> Path:
    """The file that holds a dataset: the path itself, or what is in a folder of Minari.

    Raises:
        DataError: a folder of something else.
    """
    path = Path(path)
    return _minari_file(path) if path.is_dir() else path


def _minari_file(folder: Path) -> Path:
    for path in (folder / "main_data.hdf5", folder / "data/main_data.hdf5"):
        if path.is_file():
            return path
    found = names_in(path.name for path in folder.iterdir())
    raise DataError(
        f"data {folder}: expected a file, or a folder of Minari with main_data.hdf5; the folder "
        f"has {found}"
    )


def flat_dataset(arrays: Mapping[str, Any], source: str = "data") -> FlatDataset:
    """Checks flat arrays in D4RL's names and gives them their types.

    Raises:
        DataError: opens with `source`; names the array, what came and what was expected.
    """
    check_names(arrays, source)
    observations = matrix(arrays, "observations", source)
    length = len(observations)
    if length < 2:
        raise DataError(f"data {source}: observations: expected at least 2 rows, got {length}")
    actions = matrix(arrays, "actions", source, length)
    largest = np.abs(actions).max()
    if largest > 1 + ACTION_TOLERANCE:
        raise DataError(f"data {source}: actions: expected within [-1, 1], got {largest:.4g}")
    following = None
    if arrays.get("next_observations") is not None:
        following = matrix(arrays, "next_observations", source, length)
        if following.shape != observations.shape:
            raise DataError(
                f"data {source}: next_observations: expected shape {observations.shape}, "
                f"got {following.shape}"
            )
    timeouts = flags(arrays, "timeouts", source, length)
    if timeouts[:-1].all():
        raise DataError(
            f"data {source}: timeouts: expected a row that no time limit cuts off before the last "
            f"of the {length}, got none, so that no transition is left"
        )
    return FlatDataset(
        observations,
        np.clip(actions, -1.0, 1.0),
        _single(column(arrays, "rewards", source, length), "rewards", source),
        flags(arrays, "terminals", source, length),
        timeouts,
        following,
    )


def check_names(found: Iterable[str], source: str) -> None:
    """Raises `DataError` unless all of D4RL's arrays are among the names `found`."""
    found = set(found)
    missing = [name for name in REQUIRED if name not in found]
    if not missing:
        return
    others = [name for name, telling in OTHER_LAYOUTS.items() if telling <= found]
    layout = f", which looks like {others[0]}" if others and "observations" not in found else ""
    raise DataError(
        f"data {source}: {missing[0]}: missing; the file has {names_in(found)}{layout}; expected "
        f"D4RL's {', '.join(REQUIRED)}, or Minari's groups episode_0, episode_1, ..."
    )


def names_in(found: Iterable[str], most: int = 12) -> str:
    """The first `most` names in order, for an error."""
    names = sorted(found)
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more]) or "nothing"


def episode_ends(flat: FlatDataset) -> np.ndarray:
    """[L] bool: where an episode ends, flagged or not.

    Files leave ends unmarked (D4RL's medium-replay among them), where a recording was stopped and
    begun again. `next_observations` shows them: what a row reached is not what the next one saw.

    Raises:
        DataError: more rows are followed by another than by the next one: they are in no order.
    """
    ends = flat.terminals | flat.timeouts
    if flat.next_observations is None:
        return ends
    seen = flat.observations[1:]
    away = np.abs(flat.next_observations[:-1] - seen)
    breaks = np.any(away > CONTINUITY * np.maximum(np.abs(seen), 1.0), axis=1)
    inside = ~ends[:-1]
    unmarked = int((breaks & inside).sum())
    # A file of a few rows may be made of episodes of one step.
    if unmarked >= SHUFFLED and 2 * unmarked > inside.sum():
        raise DataError(
            "data: next_observations: expected what the next row observes, within an episode, "
            f"got something else after {unmarked} of {inside.sum()} rows; returns need rows in "
            "the order of time, whole episodes one after another"
        )
    return ends | np.append(breaks, False)


def q_learning_rows(flat: FlatDataset) -> Rows:
    """D4RL's protocol: all rows but the last of the file and those cut off by a time limit.

    Where the dataset has no next observations, that of row i is the observation of row i + 1.

    Raises:
        DataError: no row is left.
    """
    index = np.flatnonzero(~flat.timeouts[:-1])
    if not len(index):
        raise DataError("data: timeouts: expected a row that no time limit cuts off, got none")
    following = flat.next_observations
    after = flat.observations[index + 1] if following is None else following[index]
    return Rows(
        index,
        flat.observations[index],
        flat.actions[index],
        flat.rewards[index],
        after,
        flat.terminals[index],
    )


def matrix(
    arrays: Mapping[str, Any], name: str, source: str, length: int | None = None
) -> np.ndarray:
    """A field of a file that has a row for every step.

    Args:
        arrays: the file's content by name.
        name: of the field.
        source: the file, for messages.
        length: how many rows there have to be; None: any number.

    Returns:
        [rows, dimensions] float32, finite.

    Raises:
        DataError: another shape or type, or numbers that are not finite.
    """
    values = np.asarray(arrays[name])
    if values.ndim != 2 or not values.shape[1] or length not in (None, len(values)):
        rows = "rows" if length is None else length
        raise DataError(
            f"data {source}: {name}: expected shape ({rows}, dimensions), got {values.shape}"
        )
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError(f"data {source}: {name}: expected floating numbers, got {values.dtype}")
    return _single(values, name, source)


def column(arrays: Mapping[str, Any], name: str, source: str, length: int) -> np.ndarray:
    """A field of a file that has a number for every step.

    Args:
        arrays: the file's content by name.
        name: of the field.
        source: the file, for messages.
        length: how many there have to be.

    Returns:
        [length] of the file's type.

    Raises:
        DataError: another shape, or no numbers.
    """
    values = np.asarray(arrays[name])
    if values.shape not in ((length,), (length, 1)):
        raise DataError(f"data {source}: {name}: expected shape ({length},), got {values.shape}")
    if values.dtype.kind not in "fiub":
        raise DataError(f"data {source}: {name}: expected numbers, got {values.dtype}")
    return values.reshape(length)


def flags(arrays: Mapping[str, Any], name: str, source: str, length: int) -> np.ndarray:
    """A field of a file that has a yes or no for every step.

    Args:
        arrays: the file's content by name.
        name: of the field.
        source: the file, for messages.
        length: how many there have to be.

    Returns:
        [length] bool.

    Raises:
        DataError: another shape, or anything but 0 and 1.
    """
    values = column(arrays, name, source, length)
    wrong = values[(values != 0) & (values != 1)]
    if wrong.size:
        raise DataError(f"data {source}: {name}: expected 0 and 1 only, got {wrong[0]}")
    return values.astype(bool)


def _single(values: np.ndarray, name: str, source: str) -> np.ndarray:
    """The values as finite float32."""
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    bad = ~np.isfinite(single)
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        raise DataError(
            f"data {source}: {name}: expected finite numbers, got {values[bad][0]} in row {row}"
        )
    return single
