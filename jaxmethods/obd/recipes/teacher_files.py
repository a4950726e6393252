"""Near-expert policies with their critics, from and to files.

The npz layout: actor_w0.., actor_b0.. (input-major, y = x @ w + b), actor_log_std_multiplier,
actor_log_std_offset, q1_w0.., q1_b0.., q2_w0.., q2_b0.., obs_mean, obs_std, obs_eps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmethods.errors import DataError, first_line, import_extra
from jaxmethods.files import read_npz, write_npz
from jaxmethods.obd.types import Source
from jaxmethods.offline_rl.dataset import STATE_EPS
from jaxmethods.offline_rl.policies import Layer, PolicyParams, QParams
from jaxmethods.offline_rl.types import Norm, Teacher

SCALARS = ("actor_log_std_multiplier", "actor_log_std_offset")
USED = re.compile(rf"(actor|q1|q2)_[wb]\d+|obs_(mean|std|eps)|{'|'.join(SCALARS)}")
"""Names of the arrays that are read; a file may hold others."""


def load_teacher(path: Path | str) -> Teacher:
    """Reads a teacher in the npz layout of this module.

    Args:
        path: an .npz file.

    Returns:
        Policy, critics and statistics, float32.

    Raises:
        DataError: an array is missing, not finite, or its shape doesn't fit the others.
    """
    arrays = read_npz(path)
    return _teacher(arrays, f"teacher {path}")


def save_teacher(path: Path | str, teacher: Teacher) -> None:
    """Writes a teacher in the npz layout of this module; all of it or nothing.

    Args:
        path: the .npz file.
        teacher: policy, critics and statistics.
    """
    named: dict[str, Any] = {
        "actor_log_std_multiplier": teacher.policy.log_std_mult,
        "actor_log_std_offset": teacher.policy.log_std_off,
        "obs_mean": teacher.norm.mean,
        "obs_std": teacher.norm.std,
        "obs_eps": 0.0,  # the standard deviation has it already
    }
    networks = {"actor": teacher.policy.layers, "q1": teacher.q1, "q2": teacher.q2}
    for network, layers in networks.items():
        for i, (weights, biases) in enumerate(layers):
            named |= {f"{network}_w{i}": weights, f"{network}_b{i}": biases}
    arrays = {name: np.asarray(value, np.float32) for name, value in named.items()}
    write_npz(Path(path), arrays)


def load_corl_calql(
    path: Path | str, mean: np.ndarray, std: np.ndarray, eps: float = STATE_EPS
) -> Teacher:
    """Reads a Cal-QL checkpoint of CORL (a torch file); needs PyTorch.

    Tensors only: a file that brings code along is refused. The checkpoint doesn't hold the
    statistics of the observations it was trained on.

    Args:
        path: the checkpoint.
        mean: [S] of those observations.
        std: [S], without `eps`.
        eps: small number that is added to `std`.

    Returns:
        Policy, critics and statistics, float32.

    Raises:
        DataError: the file is not such a checkpoint, or the statistics don't fit it.
        MissingExtraError: PyTorch is not installed.
    """
    saved = _load_torch(Path(path))
    where = f"teacher {path}"
    actor = _state_dict(saved, "actor", where)
    arrays: dict[str, Any] = {"obs_mean": mean, "obs_std": std, "obs_eps": eps}
    arrays["actor_log_std_multiplier"] = actor.get("log_std_multiplier.constant")
    arrays["actor_log_std_offset"] = actor.get("log_std_offset.constant")
    arrays |= _input_major(actor, "base_network.", "actor")
    for ours, theirs in (("q1", "critic1"), ("q2", "critic2")):
        arrays |= _input_major(_state_dict(saved, theirs, where), "network.", ours)
    arrays = {name: np.asarray(value) for name, value in arrays.items() if value is not None}
    return _teacher(arrays, where)


def check_teacher(source: Source) -> None:
    """Raises `DataError` where the teacher's states or actions are not those of the data."""
    if source.teacher is None:
        return
    states, actions = source.data.states.shape[1], source.data.actions.shape[1]
    own = source.teacher.norm.mean.shape[0], source.teacher.policy.layers[-1][0].shape[1] // 2
    if own != (states, actions):
        raise DataError(
            f"teacher: expected {states} state and {actions} action dimensions as in the data, "
            f"got {own[0]} and {own[1]}"
        )


def _teacher(arrays: Mapping[str, np.ndarray], where: str) -> Teacher:
    for name in (*SCALARS, "obs_mean", "obs_std"):
        if name not in arrays:
            raise DataError(f"{where}: {name}: missing")
    for name, array in arrays.items():
        if USED.fullmatch(name) and array.dtype.kind not in "fiu":
            raise DataError(f"{where}: {name}: expected numbers, got {array.dtype}")
        if name in SCALARS and (array.size != 1 or not np.isfinite(array).all()):
            raise DataError(
                f"{where}: {name}: expected one finite number, got {array.tolist()!r:.80}"
            )
    mean, std = (np.asarray(arrays[name], np.float32) for name in ("obs_mean", "obs_std"))
    std = std + np.float32(arrays.get("obs_eps", 0.0))
    if mean.ndim != 1 or std.shape != mean.shape:
        raise DataError(f"{where}: obs_std: expected shape {mean.shape}, got {std.shape}")
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise DataError(f"{where}: obs_std: expected finite numbers above 0")
    actor = _layers(arrays, "actor", len(mean), where)
    heads = actor[-1][0].shape[1]
    if heads % 2:
        raise DataError(f"{where}: actor: expected an even number of outputs, got {heads}")
    critics = [_layers(arrays, name, len(mean) + heads // 2, where) for name in ("q1", "q2")]
    for name, critic in zip(("q1", "q2"), critics, strict=True):
        if critic[-1][0].shape[1] != 1:
            raise DataError(f"{where}: {name}: expected 1 output, got {critic[-1][0].shape[1]}")
    mult, off = (jnp.asarray(arrays[name], jnp.float32).reshape(()) for name in SCALARS)
    norm = Norm(jnp.asarray(mean), jnp.asarray(std))
    return Teacher(PolicyParams(actor, mult, off), critics[0], critics[1], norm)


def _layers(arrays: Mapping[str, np.ndarray], name: str, inputs: int, where: str) -> QParams:
    """The layers of one network, each checked against the one before."""
    layers: list[Layer] = []
    while f"{name}_w{len(layers)}" in arrays:
        i = len(layers)
        weights = arrays[f"{name}_w{i}"]
        biases = arrays.get(f"{name}_b{i}", np.zeros(0))
        if weights.ndim != 2 or weights.shape[0] != inputs:
            raise DataError(
                f"{where}: {name}_w{i}: expected shape ({inputs}, outputs), got {weights.shape}"
            )
        if biases.shape != weights.shape[1:]:
            raise DataError(
                f"{where}: {name}_b{i}: expected shape {weights.shape[1:]}, got {biases.shape}"
            )
        if not (np.isfinite(weights).all() and np.isfinite(biases).all()):
            raise DataError(f"{where}: {name}_w{i}: expected finite numbers")
        layers.append((jnp.asarray(weights, jnp.float32), jnp.asarray(biases, jnp.float32)))
        inputs = weights.shape[1]
    further = sorted(
        other
        for other in arrays
        if re.fullmatch(rf"{name}_[wb]\d+", other) and int(other[len(name) + 2 :]) >= len(layers)
    )
    if not layers or further:  # without those behind a gap it would be another network
        there = f", but {further[0]} is there" if further else ""
        raise DataError(f"{where}: {name}_w{len(layers)}: missing{there}")
    return tuple(layers)


def _load_torch(path: Path) -> Mapping[str, Any]:
    torch: Any = import_extra("torch", "bench")

    class Scalar(torch.nn.Module):
        """What the checkpoints' log-alphas are instances of; only its tensors are read."""

    # Classes are pickled by name; this is the only one allowed besides tensors.
    allowed = [(Scalar, "__main__.Scalar")]
    try:
        with torch.serialization.safe_globals(allowed):
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError(f"teacher {path}: no such file") from error
    except Exception as error:  # zip, pickle and torch raise many kinds for a bad file
        raise DataError(
            f"teacher {path}: cannot be read as tensors ({first_line(error)})"
        ) from error
    if not isinstance(saved, Mapping):
        raise DataError(f"teacher {path}: expected a mapping, got {type(saved).__name__}")
    return saved


def _state_dict(saved: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    if not isinstance(saved.get(name), Mapping):
        raise DataError(f"{where}: {name}: missing; the file has {', '.join(map(str, saved))}")
    return saved[name]


def _input_major(state: Mapping[str, Any], prefix: str, name: str) -> dict[str, np.ndarray]:
    """nn.Sequential's linear layers, in order, with weights [in, out]."""
    found = (re.fullmatch(re.escape(prefix) + r"(\d+)\.weight", key) for key in state)
    places = sorted(int(match[1]) for match in found if match)
    arrays = {}
    for i, place in enumerate(places):
        arrays[f"{name}_w{i}"] = state[f"{prefix}{place}.weight"].float().numpy().T
        bias = state.get(f"{prefix}{place}.bias")
        if bias is not None:
            arrays[f"{name}_b{i}"] = bias.float().numpy()
    return arrays
