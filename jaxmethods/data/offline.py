"""Offline reinforcement-learning data: D4RL HDF5, Minari HDF5, and npz with D4RL's names.

Whatever the file, the result is flat arrays, whole episodes one after another, checked: shapes
that fit each other, finite numbers, flags that are flags, actions within [-1, 1]. Reading never
runs code that a file brings along.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmethods.errors import UserError, import_extra

REQUIRED = ("observations", "actions", "rewards", "terminals", "timeouts")
OPTIONAL = ("next_observations",)
ACTION_TOLERANCE = 1e-4
"""How far recorded actions may leave [-1, 1] by rounding."""


class DataError(UserError):
    """A data file that cannot be used; the message says why."""


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
    path = Path(path)
    if path.is_dir():
        path = next(
            (p for p in (path / "main_data.hdf5", path / "data/main_data.hdf5") if p.is_file()),
            path,
        )
    if not path.is_file():
        raise DataError(f"data {path}: no such file")
    if path.suffix == ".npz":
        return flat_dataset(read_npz(path, (*REQUIRED, *OPTIONAL)), str(path))
    if path.suffix in (".hdf5", ".h5"):
        return flat_dataset(_read_hdf5(path), str(path))
    raise DataError(f"data {path}: expected a .npz, .hdf5 or .h5 file")


def flat_dataset(arrays: Mapping[str, Any], source: str = "data") -> FlatDataset:
    """Checks flat arrays in D4RL's names and gives them their types.

    Raises:
        DataError: opens with `source`; names the array, what came and what was expected.
    """
    missing = [name for name in REQUIRED if name not in arrays]
    if missing:
        found = ", ".join(sorted(arrays)) or "nothing"
        raise DataError(f"data {source}: {missing[0]}: missing; the file has {found}")
    observations = _matrix(arrays, "observations", source)
    length = len(observations)
    if length < 2:
        raise DataError(f"data {source}: observations: expected at least 2 rows, got {length}")
    actions = _matrix(arrays, "actions", source, length)
    largest = np.abs(actions).max()
    if largest > 1 + ACTION_TOLERANCE:
        raise DataError(f"data {source}: actions: expected within [-1, 1], got {largest:.4g}")
    following = None
    if arrays.get("next_observations") is not None:
        following = _matrix(arrays, "next_observations", source, length)
        if following.shape != observations.shape:
            raise DataError(
                f"data {source}: next_observations: expected shape {observations.shape}, "
                f"got {following.shape}"
            )
    rewards = _column(arrays, "rewards", source, length).astype(np.float32)
    _check_finite(rewards, "rewards", source)
    return FlatDataset(
        observations,
        np.clip(actions, -1.0, 1.0),
        rewards,
        _flags(arrays, "terminals", source, length),
        _flags(arrays, "timeouts", source, length),
        following,
    )


def q_learning_rows(flat: FlatDataset) -> Rows:
    """D4RL's protocol: all rows but the last of the file and those cut off by a time limit.

    Where the dataset has no next observations, that of row i is the observation of row i + 1.
    """
    index = np.flatnonzero(~flat.timeouts[:-1])
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


def read_npz(path: Path | str, names: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an npz file, all or those of `names` that are there; never pickles.

    Raises:
        DataError: it is missing or damaged, or holds something else than arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise DataError(f"data {path}: is not an npz archive")
            wanted = arrays.files if names is None else [n for n in names if n in arrays.files]
            return {name: arrays[name] for name in wanted}
    except FileNotFoundError as error:
        raise DataError(f"data {path}: no such file") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise DataError(f"data {path}: cannot be read as npz ({_first_line(error)})") from error
    except Exception as error:  # zlib.error and its kin of damaged archives
        if isinstance(error, UserError):
            raise
        raise DataError(f"data {path}: cannot be read as npz ({_first_line(error)})") from error


def _read_hdf5(path: Path) -> dict[str, np.ndarray]:
    h5py: Any = import_extra("h5py", "rl")
    try:
        with h5py.File(path, "r") as file:
            episodes = [name for name in file if name.startswith("episode_")]
            if episodes:
                return _minari(file, sorted(episodes, key=_episode_number), path)
            return {n: np.asarray(file[n]) for n in (*REQUIRED, *OPTIONAL) if n in file}
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise DataError(f"data {path}: cannot be read as HDF5 ({_first_line(error)})") from error


def _minari(file: Any, episodes: list[str], path: Path) -> dict[str, np.ndarray]:
    """Episodes of T steps with T + 1 observations, one after another."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*REQUIRED, *OPTIONAL)}
    for name in episodes:
        for part, values in _minari_episode(file[name], f"data {path}: {name}").items():
            parts[part].append(values)
    try:
        return {name: np.concatenate(values) for name, values in parts.items()}
    except ValueError as error:
        raise DataError(f"data {path}: episodes of different shapes ({error})") from error


def _minari_episode(group: Any, where: str) -> dict[str, np.ndarray]:
    names = ("observations", "actions", "rewards", "terminations", "truncations")
    missing = [name for name in names if name not in group]
    if missing:
        raise DataError(f"{where}: {missing[0]}: missing")
    if not hasattr(group["observations"], "shape"):
        raise DataError(f"{where}: observations: expected an array, got a group of arrays")
    observations, actions, rewards, terminals, truncations = (np.asarray(group[n]) for n in names)
    if not len(actions) or len(observations) != len(actions) + 1:
        raise DataError(
            f"{where}: observations: expected one more than the {len(actions)} actions, "
            f"got {len(observations)}"
        )
    terminals = terminals.astype(bool).reshape(-1)
    timeouts = truncations.astype(bool).reshape(-1) & ~terminals
    # An episode that was recorded without its end is cut off where it stops.
    timeouts[-1] |= not terminals[-1]
    return {
        "observations": observations[:-1],
        "actions": actions,
        "rewards": rewards,
        "terminals": terminals,
        "timeouts": timeouts,
        "next_observations": observations[1:],
    }


def _episode_number(name: str) -> int:
    number = name.removeprefix("episode_")
    return int(number) if number.isdigit() else -1


def _matrix(
    arrays: Mapping[str, Any], name: str, source: str, length: int | None = None
) -> np.ndarray:
    values = np.asarray(arrays[name])
    if values.ndim != 2 or not values.shape[1] or length not in (None, len(values)):
        rows = "rows" if length is None else length
        raise DataError(
            f"data {source}: {name}: expected shape ({rows}, dimensions), got {values.shape}"
        )
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError(f"data {source}: {name}: expected floating numbers, got {values.dtype}")
    values = values.astype(np.float32)
    _check_finite(values, name, source)
    return values


def _column(arrays: Mapping[str, Any], name: str, source: str, length: int) -> np.ndarray:
    values = np.asarray(arrays[name])
    if values.shape not in ((length,), (length, 1)):
        raise DataError(f"data {source}: {name}: expected shape ({length},), got {values.shape}")
    if values.dtype.kind not in "fiub":
        raise DataError(f"data {source}: {name}: expected numbers, got {values.dtype}")
    return values.reshape(length)


def _flags(arrays: Mapping[str, Any], name: str, source: str, length: int) -> np.ndarray:
    values = _column(arrays, name, source, length)
    wrong = values[(values != 0) & (values != 1)]
    if wrong.size:
        raise DataError(f"data {source}: {name}: expected 0 and 1 only, got {wrong[0]}")
    return values.astype(bool)


def _check_finite(values: np.ndarray, name: str, source: str) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        raise DataError(
            f"data {source}: {name}: expected finite numbers, got {values[bad][0]} in row {row}"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:200]
