"""Offline data in HDF5: D4RL's flat arrays, and Minari's episodes.

A file is D4RL's where it holds one of D4RL's arrays, whatever else is in it, and Minari's where it
holds groups `episode_0`, `episode_1`, ...: one a recorded episode, of T steps and T + 1
observations. Links are followed within the folder of the file (Minari spreads a dataset over
several files there) and no further.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmethods.data.offline import OPTIONAL, REQUIRED, check_names, column, flags, matrix, names_in
from jaxmethods.errors import DataError, UserError, first_line, import_extra

EPISODE = re.compile("episode_[0-9]+")
OF_EPISODE = ("observations", "actions", "rewards", "terminations", "truncations")


def read_hdf5(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a D4RL or Minari file under D4RL's names; only those of Minari are checked.

    Raises:
        DataError: names the file, the episode and the array, what came and what was expected.
        MissingExtraError: h5py is not installed.
    """
    h5py: Any = import_extra("h5py", "rl")
    try:
        with h5py.File(path, "r") as file:
            names = list(file)
            episodes = [name for name in names if EPISODE.fullmatch(name)]
            if episodes and not set(names) & set(REQUIRED):
                others = [n for n in names if n.startswith("episode_") and n not in episodes]
                return _episodes(file, episodes, others, str(path))
            check_names(names, str(path))
            known = [name for name in (*REQUIRED, *OPTIONAL) if name in names]
            return {name: _array(file, name, str(path)) for name in known}
    except UserError:
        raise
    except Exception as error:  # h5py raises of everything: OSError, RuntimeError, KeyError, ...
        raise DataError(f"data {path}: cannot be read as HDF5 ({first_line(error)})") from error


def _episodes(
    file: Any, names: Sequence[str], others: Sequence[str], source: str
) -> dict[str, np.ndarray]:
    """All episodes in the order of their numbers, one after another."""
    for name in others:  # arrays of other tools are let be, episodes are not left out
        if hasattr(_member(file, name, source), "keys"):
            raise DataError(f"data {source}: {name}: expected episode_ and a number")
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*REQUIRED, *OPTIONAL)}
    first: dict[str, tuple[int, ...]] = {}
    for name in sorted(names, key=lambda name: int(name.removeprefix("episode_"))):
        for part, values in _episode(file, name, source).items():
            expected = first.setdefault(part, values.shape[1:])
            if values.shape[1:] != expected:
                raise DataError(
                    f"data {source}: {name}: {part}: expected {expected[0]} dimensions as in the "
                    f"episode before, got {values.shape[1]}"
                )
            parts[part].append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}


def _episode(file: Any, name: str, source: str) -> dict[str, np.ndarray]:
    """One episode of T steps in D4RL's layout."""
    group, where = _member(file, name, source), f"{source}: {name}"
    if not hasattr(group, "keys"):
        raise DataError(f"data {where}: expected a group of arrays, got one array")
    missing = [part for part in OF_EPISODE if part not in list(group)]
    if missing:
        raise DataError(f"data {where}: {missing[0]}: missing; it has {names_in(group)}")
    arrays = {part: _array(group, part, where) for part in OF_EPISODE}
    if not len(arrays["actions"]):
        raise DataError(f"data {where}: actions: expected at least one step, got none")
    steps = len(arrays["actions"])
    if len(arrays["observations"]) != steps + 1:
        raise DataError(
            f"data {where}: observations: expected one more than the {steps} actions, "
            f"got {len(arrays['observations'])}"
        )
    observations = matrix(arrays, "observations", where)
    terminals = flags(arrays, "terminations", where, steps)
    timeouts = flags(arrays, "truncations", where, steps) & ~terminals
    # An episode that was recorded without its end is cut off where it stops.
    timeouts[-1] |= not terminals[-1]
    return {
        "observations": observations[:-1],
        "actions": matrix(arrays, "actions", where, steps),
        "rewards": column(arrays, "rewards", where, steps),
        "terminals": terminals,
        "timeouts": timeouts,
        "next_observations": observations[1:],
    }


def _array(group: Any, name: str, source: str) -> np.ndarray:
    """An array that the data's own folder holds whole."""
    item, where = _member(group, name, source), f"data {source}: {name}"
    if hasattr(item, "keys"):
        raise DataError(
            f"{where}: expected an array, got a group of arrays ({names_in(item)}); flatten them "
            "into one"
        )
    if not item.shape:
        got = "an empty one" if item.shape is None else "one value"
        raise DataError(f"{where}: expected an array, got {got}")
    # Parts that lie elsewhere are filled up with zeros where their file is missing.
    elsewhere = [part.file_name for part in item.virtual_sources()] if item.is_virtual else []
    elsewhere += [part[0] for part in item.external or ()]
    elsewhere = [file for file in elsewhere if file != "."]
    if elsewhere:
        raise DataError(f"{where}: lies in other files ({names_in(elsewhere)}); copy it into one")
    try:
        return np.asarray(item[()])
    except Exception as error:
        raise DataError(f"{where}: cannot be read ({first_line(error)})") from error


def _member(group: Any, name: str, source: str) -> Any:
    """What a name of a group leads to, within the folder of the file."""
    try:
        item = group[name]
    except Exception as error:
        link = group.get(name, getlink=True)
        target = ":".join(filter(None, (getattr(link, "filename", ""), getattr(link, "path", ""))))
        what = f"is a link to {target}, which leads nowhere" if target else first_line(error)
        raise DataError(f"data {source}: {name}: {what}") from error
    main = Path(group.file.filename)
    target = Path(item.file.filename).resolve()
    folders = (main.parent.resolve(), main.resolve().parent)  # the file may be a link itself
    if not any(target.is_relative_to(folder) for folder in folders):
        raise DataError(
            f"data {source}: {name}: is a link to {target}, outside of the folder of the file; "
            "copy it into the file"
        )
    return item
