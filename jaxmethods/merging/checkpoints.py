"""Checkpoints to merge: opened, compared, and read in parts.

Only headers are read when checkpoints are opened. A `Part` is a tensor, or a range of the entries
of a large one where a merge doesn't look at the others; one part of each expert is in memory at a
time, and the next one is read while it is merged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.errors import UserError
from jaxmethods.merging.merge_config import MergeConfig
from jaxmethods.models import hub
from jaxmethods.models.hub import Folder, Stored

PART = 1 << 22
"""Entries of the largest part."""
PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
SAME_MEANING = (
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "hidden_activation",
    "activation_function",
    "rope_theta",
    "patch_size",
)
"""Fields of `config.json` that change what tensors of the same shapes mean."""
ALIGNMENT = 64
"""Bytes; what JAX wants of a host array to use it without a copy."""


class MergeError(UserError):
    """Checkpoints that cannot be merged; the message is one line."""


class Inputs(NamedTuple):
    """Checkpoints that fit each other; only their headers are in memory."""

    config: MergeConfig
    base: Folder
    experts: list[Folder]
    merged: list[str]
    """Sorted names of the tensors that are merged; all others are the base's."""

    def sources(self) -> list[Folder]:
        return [self.base, *self.experts]


class Part(NamedTuple):
    """Entries `start` to `stop` (in C order) of a tensor."""

    name: str
    start: int
    stop: int
    shape: tuple[int, ...]
    """That the merge gets: the tensor's, or one axis."""


class Loaded(NamedTuple):
    """One part of all checkpoints, in device memory."""

    part: Part
    base: jax.Array
    """Shape of the part, in the base's type."""
    stack: jax.Array
    """[T, ...], in the experts' common type."""


def open_inputs(config: MergeConfig) -> Inputs:
    """Reads all headers and checks that the checkpoints fit.

    Raises:
        MergeError: tensors are missing, extra or of another shape or kind; architectures differ; a
            pattern names nothing; weights are pickled.
        HubError: a folder or file cannot be read.
    """
    base = open_checkpoint(config.base, "base")
    experts = [open_checkpoint(path, "expert") for path in config.experts]
    for pattern in [*config.exclude, *(rule.pattern for rule in config.rules)]:
        if not any(re.search(pattern, name) for tree in [base, *experts] for name in tree.tensors):
            raise MergeError(f"pattern {pattern!r}: no tensor of {base.path} has such a name")
    for expert in experts:
        _check_config(base, expert)
        _check_tensors(config, base, expert)
    merged = sorted(
        name for name, stored in base.tensors.items() if _takes_part(config, name, stored)
    )
    if not merged:
        raise MergeError(f"base {base.path}: no floating-point tensor is left to merge")
    return Inputs(config, base, experts, merged)


def open_checkpoint(path: Path, role: str) -> Folder:
    """A model folder or a safetensors file."""
    if not path.exists():
        raise MergeError(f"{role} {path}: expected a model folder, found nothing there")
    if path.is_dir():
        return hub.open_folder(path)
    if path.suffix in PICKLED:
        raise MergeError(
            f"{role} {path}: pickled weights may run code when opened and are not read; "
            "expected safetensors"
        )
    if path.suffix != ".safetensors":
        raise MergeError(f"{role} {path}: expected a model folder or a safetensors file")
    return hub.open_file(path)


def coefficients(inputs: Inputs) -> dict[str, float | tuple[float, ...] | None]:
    """The coefficient of every merged tensor, by the config's rules; None: the method's own."""
    config = inputs.config
    default = config.coefficient
    if default is None and config.method not in ("average", "model_stock"):
        default = config.value("coefficient")
    chosen: dict[str, float | tuple[float, ...] | None] = dict.fromkeys(inputs.merged, default)
    for rule in reversed(config.rules):  # the first rule has the last word
        found = {name: re.search(rule.pattern, name) for name in inputs.merged}
        found = {name: match for name, match in found.items() if match}
        if not rule.over_depth:
            chosen |= dict.fromkeys(found, rule.coefficient)
            continue
        try:
            layers = {name: int(match.group(1)) for name, match in found.items()}
        except (TypeError, ValueError) as error:
            raise MergeError(
                f"rule {rule.pattern!r}: its first group is no number in {min(found)}"
            ) from error
        last = max(max(layers.values(), default=0), 1)
        anchors = np.linspace(0, last, len(rule.over_depth))
        chosen |= {
            name: float(np.interp(layer, anchors, rule.over_depth))
            for name, layer in layers.items()
        }
    return chosen


def parts(inputs: Inputs, whole: bool) -> list[Part]:
    """What is merged at a time: whole tensors, or at most `PART` entries of one."""
    found = []
    for name in inputs.merged:
        shape = inputs.base.tensors[name].shape
        size = math.prod(shape)
        if whole:
            found.append(Part(name, 0, size, shape))
            continue
        for start in range(0, size, PART):
            stop = min(start + PART, size)
            found.append(Part(name, start, stop, (stop - start,)))
    return found


def load(inputs: Inputs, wanted: Iterable[Part], check: bool = False) -> Iterator[Loaded]:
    """The parts one after the other; the next one is read meanwhile.

    Raises:
        MergeError: with `check`, a part holds values that are not finite.
    """
    wanted = list(wanted)
    with ThreadPoolExecutor(1) as reader:
        pending = reader.submit(_load, inputs, wanted[0]) if wanted else None
        for part in wanted[1:] + [None] * bool(wanted):
            assert pending is not None
            loaded = pending.result()
            pending = reader.submit(_load, inputs, part) if part is not None else None
            if check:
                _check_finite(inputs, loaded)
            yield loaded


def read_entries(stored: Stored, start: int, out: np.ndarray) -> None:
    """Fills `out`, of the stored type, with entries from `start` on."""
    buffer = out.reshape(-1).view(np.uint8).data
    with stored.file.open("rb", buffering=0) as file:
        file.seek(stored.offset + start * stored.dtype.itemsize)
        while buffer:
            count = file.readinto(buffer)
            if not count:
                raise MergeError(f"model file {stored.file}: the file is cut off")
            buffer = buffer[count:]


def _load(inputs: Inputs, part: Part) -> Loaded:
    origin = inputs.base.tensors[part.name]
    stored = [expert.tensors[part.name] for expert in inputs.experts]
    dtype = stored[0].dtype
    for other in stored[1:]:
        dtype = np.dtype(jnp.promote_types(dtype, other.dtype))
    base = _aligned(part.shape, origin.dtype)
    read_entries(origin, part.start, base)
    stack = _aligned((len(stored), *part.shape), dtype)
    rows = stack.reshape(len(stored), part.stop - part.start)  # of numbers too, a row is a view
    for tensor, row in zip(stored, rows, strict=True):
        if tensor.dtype == dtype:
            read_entries(tensor, part.start, row)
        else:
            own = np.empty(row.shape, tensor.dtype)
            read_entries(tensor, part.start, own)
            row[...] = own
    return Loaded(part, jax.device_put(base), jax.device_put(stack))


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


@jax.jit
def _not_finite(base: jax.Array, stack: jax.Array) -> jax.Array:
    def count(values: jax.Array) -> jax.Array:
        return jnp.sum(~jnp.isfinite(values), dtype=jnp.int32)

    return jnp.stack([count(base), *(count(expert) for expert in stack)])


def _check_finite(inputs: Inputs, loaded: Loaded) -> None:
    wrong = np.asarray(_not_finite(loaded.base, loaded.stack))
    for source, count in zip(inputs.sources(), wrong.tolist(), strict=True):
        if count:
            stored = source.tensors[loaded.part.name]
            raise MergeError(
                f"model file {stored.file}: {loaded.part.name}: expected finite weights, got "
                f"{count} NaN or infinite of {loaded.part.stop - loaded.part.start}"
            )


def _takes_part(config: MergeConfig, name: str, stored: Stored) -> bool:
    """Floating tensors that no pattern excludes."""
    excluded = any(re.search(pattern, name) for pattern in config.exclude)
    return not excluded and bool(jnp.issubdtype(stored.dtype, jnp.floating))


def _check_config(base: Folder, expert: Folder) -> None:
    ours, theirs = base.config, expert.config
    kinds = [config.get("model_type") for config in (ours, theirs)]
    if None in kinds:
        return
    if kinds[0] != kinds[1]:
        short, long = sorted(map(str, kinds), key=len)  # clip, clip_vision_model: a tower of it
        if not long.startswith(f"{short}_"):
            raise MergeError(
                f"expert {expert.path}: expected model_type {kinds[0]!r} like the base, "
                f"got {kinds[1]!r}"
            )
        tower = long.removeprefix(f"{short}_").removesuffix("_model") + "_config"
        ours, theirs = ours.get(tower, ours), theirs.get(tower, theirs)
    for name, one, other in _differences(ours, theirs):
        raise MergeError(
            f"expert {expert.path}: expected {name} {one!r} like the base, got {other!r}"
        )


def _differences(ours: Any, theirs: Any) -> Iterator[tuple[str, Any, Any]]:
    for name in SAME_MEANING:
        if name in ours and name in theirs and ours[name] != theirs[name]:
            yield name, ours[name], theirs[name]
    for name, value in ours.items():
        if isinstance(value, dict) and isinstance(theirs.get(name), dict):
            for inner, one, other in _differences(value, theirs[name]):
                yield f"{name}.{inner}", one, other


def _check_tensors(config: MergeConfig, base: Folder, expert: Folder) -> None:
    wanted = {n: s for n, s in base.tensors.items() if _takes_part(config, n, s)}
    others = {n: s for n, s in expert.tensors.items() if _takes_part(config, n, s)}
    excluding = "('exclude' keeps the base's)"
    missing = sorted(wanted.keys() - expert.tensors.keys())
    if missing:
        raise MergeError(
            f"expert {expert.path}: expected the tensors of the base, {_some(missing)} missing "
            f"{excluding}"
        )
    extra = sorted(others.keys() - base.tensors.keys())
    if extra:
        raise MergeError(
            f"expert {expert.path}: expected the tensors of the base, got {_some(extra)} too "
            f"{excluding}"
        )
    for name, stored in wanted.items():
        own = expert.tensors[name]
        if own.shape != stored.shape:
            raise MergeError(
                f"expert {expert.path}: {name}: expected shape {stored.shape} like the base, "
                f"got {own.shape} {excluding}"
            )
        if not jnp.issubdtype(own.dtype, jnp.floating):
            raise MergeError(
                f"expert {expert.path}: {name}: expected floating-point weights, got {own.dtype} "
                "(quantised checkpoints are not merged)"
            )


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
