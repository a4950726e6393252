"""A distilled set as files: plain arrays in NAME.npz and a card that vouches for them, NAME.json.

NAME.npz holds states [N, S] (normalized), actions [N, A], obs_mean [S], obs_std [S] (with the
small number that guards divisions) and states_raw [N, S]. The card says what the set was made of
and how, and holds the arrays' SHA-256; the two are written one after the other, so that whatever
is interrupted or damaged later is noticed by `load`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import jaxmethods
from jaxmethods.data.offline import dataset_file
from jaxmethods.errors import DataError
from jaxmethods.files import npz_bytes, read_npz, sha256, write_atomically
from jaxmethods.obd.config import OBDConfig
from jaxmethods.obd.types import SynSet
from jaxmethods.offline_rl.types import Norm

FORMAT, VERSION = "jaxmethods.obd", 1
ARRAYS = ("states", "actions", "obs_mean", "obs_std", "states_raw")


class Distilled(NamedTuple):
    """A distilled set with what is needed to use it and to know where it came from."""

    syn: SynSet
    norm: Norm
    card: Mapping[str, Any]


def save(
    path: Path | str,
    syn: SynSet,
    norm: Norm,
    config: OBDConfig,
    *,
    seed: int,
    outer_steps: int,
    source: Path | str | Mapping[str, str] | None = None,
    teacher: Path | str | Mapping[str, str] | None = None,
) -> Path:
    """Writes `path` (.npz) and the card beside it (.json); returns the card's path.

    Args:
        path: ends in .npz.
        syn: N pairs, normalized states.
        norm: of the states.
        config: how the set was distilled.
        seed: of the distillation.
        outer_steps: updates of the set.
        source: the dataset's file; its name and SHA-256 go into the card. Or what `describe_file`
            said of it when it was read. None: it had none.
        teacher: the teacher's, likewise.

    Returns:
        The card's path.

    Raises:
        DataError: `path` doesn't end in .npz, or a number is not finite.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise DataError(f"distilled set {path}: expected a name that ends in .npz")
    arrays = {
        "states": syn.states,
        "actions": syn.actions,
        "obs_mean": norm.mean,
        "obs_std": norm.std,
        "states_raw": norm.invert(syn.states),
    }
    arrays = {name: np.asarray(value) for name, value in arrays.items()}
    _check_arrays(arrays, f"distilled set {path}")
    content = npz_bytes(arrays)
    card = {
        "format": FORMAT,
        "version": VERSION,
        "sha256": hashlib.sha256(content).hexdigest(),
        "pairs": int(arrays["states"].shape[0]),
        "state_dimensions": int(arrays["states"].shape[1]),
        "action_dimensions": int(arrays["actions"].shape[1]),
        "objective": config.objective,
        "seed": seed,
        "outer_steps": outer_steps,
        "source": source if isinstance(source, Mapping) else describe_file(source),
        "teacher": teacher if isinstance(teacher, Mapping) else describe_file(teacher),
        "normalization": "states = (states_raw - obs_mean) / obs_std",
        "distillation": config.model_dump(mode="json"),
        "jaxmethods": jaxmethods.__version__,
    }
    write_atomically(path, content)
    write_atomically(card_path(path), json.dumps(card, indent=1) + "\n")
    return card_path(path)


def load(path: Path | str, source: Path | str | None = None) -> Distilled:
    """Reads a distilled set and checks it against its card.

    Args:
        path: the .npz; its card lies beside it.
        source: a dataset's file; the set must have been made of it.

    Returns:
        Pairs, statistics and card.

    Raises:
        DataError: a file is missing or damaged, arrays and card don't belong together, or the
            set was made of another dataset than `source`.
    """
    path = Path(path)
    where = f"distilled set {path}"
    card = _read_card(path, where)
    try:
        found = sha256(path)
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror})") from error
    if found != card["sha256"]:
        raise DataError(
            f"{where}: the arrays are not those of the card {card_path(path).name} "
            f"(SHA-256 {found[:12]}..., expected {str(card['sha256'])[:12]}...): damaged, "
            "or the files of two sets"
        )
    arrays = read_npz(path)
    _check_arrays(arrays, where)
    sizes = (*arrays["states"].shape, arrays["actions"].shape[1])
    named = tuple(card[n] for n in ("pairs", "state_dimensions", "action_dimensions"))
    if sizes != named:
        raise DataError(f"{where}: expected sizes {named} as in the card, got {sizes}")
    if source is not None:
        _check_source(card, Path(source), where)
    syn = SynSet(jnp.asarray(arrays["states"]), jnp.asarray(arrays["actions"]))
    norm = Norm(jnp.asarray(arrays["obs_mean"]), jnp.asarray(arrays["obs_std"]))
    return Distilled(syn, norm, card)


def card_path(path: Path | str) -> Path:
    """Where the card of a set lies."""
    return Path(path).with_suffix(".json")


def describe_file(path: Path | str | None) -> dict[str, str] | None:
    """Name and SHA-256 of a file, of a folder of Minari that of its data; None of None."""
    if path is None:
        return None
    path = dataset_file(path)
    return {"file": path.name, "sha256": sha256(path)}


def _read_card(path: Path, where: str) -> dict[str, Any]:
    file = card_path(path)
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{where}: its card {file.name} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{where}: its card {file.name} cannot be read ({error})") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise DataError(f"{where}: {file.name} is not the card of a distilled set")
    if card.get("version") != VERSION:
        raise DataError(
            f"{where}: card of version {card.get('version')!r}, this library reads {VERSION}"
        )
    fields = ("sha256", "pairs", "state_dimensions", "action_dimensions", "objective", "source")
    missing = [name for name in fields if name not in card]
    if missing:
        raise DataError(f"{where}: its card {file.name} has no {missing[0]!r}")
    if not isinstance(card["source"], dict | None):
        raise DataError(f"{where}: its card {file.name}: source: expected an object or null")
    return card


def _check_arrays(arrays: Mapping[str, np.ndarray], where: str) -> None:
    for name in ARRAYS:
        if name not in arrays:
            raise DataError(f"{where}: {name}: missing")
        if arrays[name].dtype.kind != "f":
            raise DataError(f"{where}: {name}: expected floating numbers, got {arrays[name].dtype}")
        if not np.isfinite(arrays[name]).all():
            raise DataError(f"{where}: {name}: expected finite numbers")
    states, actions, mean, std, raw = (arrays[name] for name in ARRAYS)
    if states.ndim != 2 or actions.ndim != 2 or len(states) != len(actions):
        raise DataError(
            f"{where}: expected as many states as actions, got {states.shape} and {actions.shape}"
        )
    if mean.shape != states.shape[1:] or std.shape != states.shape[1:] or (std <= 0).any():
        raise DataError(f"{where}: obs_std: expected {states.shape[1]} numbers above 0")
    if raw.shape != states.shape:
        raise DataError(f"{where}: states_raw: expected shape {states.shape}, got {raw.shape}")


def _check_source(card: Mapping[str, Any], source: Path, where: str) -> None:
    own = describe_file(source)
    made_of = card["source"] or {}
    if own is None or own["sha256"] != made_of.get("sha256"):
        raise DataError(
            f"{where}: was made of {made_of.get('file', 'data without a file')} "
            f"(SHA-256 {str(made_of.get('sha256'))[:12]}...), not of {source}"
        )
