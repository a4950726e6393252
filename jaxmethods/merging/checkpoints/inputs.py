"""Checkpoints to merge: opened, compared, and read in parts.

Only headers are read when checkpoints are opened; one `Part` of each expert is in memory at a time,
and the next one is read while it is merged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.merging.checkpoints.compatibility import (
    FREQUENCIES,
    MergeError,
    check_configs,
    check_labels,
    check_not_quantized,
    check_tokenizers,
    is_buffer,
    is_float,
    same_frequencies,
)
from jaxmethods.merging.checkpoints.modules import check_modules
from jaxmethods.merging.checkpoints.parts import Loaded, Part
from jaxmethods.merging.config import MergeConfig
from jaxmethods.merging.static.trees import adds_to_zero
from jaxmethods.models import hub
from jaxmethods.models.hub.folders import Folder, Stored
from jaxmethods.numerics.compiled import compiled

PART = 1 << 22
"""Entries of the largest part."""
PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
HEADS = re.compile(r"head|predictions|embed_out|(^|[.])output")
"""Names of output layers, which may share their weights with the embedding of tokens."""
ALIGNMENT = 64
"""Bytes; what JAX wants of a host array to use it without a copy."""


class Inputs(NamedTuple):
    """Checkpoints that fit each other; only their headers are in memory."""

    config: MergeConfig
    base: Folder
    experts: list[Folder]
    merged: list[str]
    """Sorted names of the tensors that are merged; all others but `tied` are the base's."""
    tied: dict[str, str]
    """Name -> that of the merged tensor that it equals in every checkpoint."""

    def sources(self) -> list[Folder]:
        return [self.base, *self.experts]


def open_inputs(config: MergeConfig) -> Inputs:
    """Reads all headers and checks that the checkpoints fit.

    Raises:
        MergeError: tensors are missing, extra or of another shape or kind; architectures, what
            configs say of the computation, or modules behind the transformer, differ; weights are
            quantized or pickled; a pattern names nothing, or one of two tied tensors.
        HubError: a folder or file cannot be read.
    """
    base = open_checkpoint(config.base, "base")
    experts = [_tied_alike(base, open_checkpoint(path, "expert")) for path in config.experts]
    for pattern in [*config.exclude, *(rule.pattern for rule in config.rules)]:
        if not any(re.search(pattern, name) for tree in [base, *experts] for name in tree.tensors):
            raise MergeError(f"pattern {pattern!r}: no tensor of {base.path} has such a name")
    check_not_quantized(base, "base")
    for expert in experts:
        check_not_quantized(expert, "expert")
        check_configs(base, expert)
        check_modules(base.path, expert.path)
        check_tokenizers(base, expert, _most_rows(config, base))
        check_labels(base, expert, _taking_part(config, base))
        _check_tensors(config, base, expert)
        _check_constants(config, base, expert)
    merged = sorted(
        name for name, stored in base.tensors.items() if _takes_part(config, name, stored)
    )
    if not merged:
        raise MergeError(f"base {base.path}: no floating-point tensor is left to merge")
    tied = _tied(config, [base, *experts])
    return Inputs(config, base, experts, [n for n in merged if n not in tied], tied)


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
    settings = config.settings
    default = settings.get("coefficient")
    names = [*inputs.merged, *inputs.tied]
    chosen: dict[str, float | tuple[float, ...] | None] = dict.fromkeys(names, default)
    for rule in reversed(config.rules):  # the first rule has the last word
        found = {name: re.search(rule.pattern, name) for name in names}
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
    for name, first in inputs.tied.items():
        if chosen[name] != chosen[first]:
            raise MergeError(
                f"rules: {first} and {name} are the same tensor in every checkpoint (tied), got "
                f"coefficients {chosen[first]} and {chosen[name]}; expected one for both"
            )
    if settings.get("normalize"):
        for name, value in chosen.items():
            weights = np.broadcast_to(1.0 if value is None else value, len(inputs.experts))
            if adds_to_zero(weights):
                raise MergeError(
                    f"{name}: expected weights whose sum isn't 0, since normalize divides by it, "
                    f"got coefficient {value}; set normalize: false or other weights"
                )
    return chosen


def is_wide(inputs: Inputs) -> bool:
    """Whether some tensor that is merged is float64 somewhere, which JAX has to be set up for."""
    kinds = {source.tensors[n].dtype for source in inputs.sources() for n in inputs.merged}
    return np.dtype(np.float64) in kinds


def parts(inputs: Inputs, whole: bool) -> list[Part]:
    """What is merged at a time: whole tensors, or at most `PART` entries of one."""
    found = []
    for name in inputs.merged:
        shape = inputs.base.tensors[name].shape
        size = math.prod(shape)
        if not size:
            continue
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
    wide = jnp.asarray(0.0).dtype == jnp.float64  # whether x64 is on; each thread has its own

    def read(part: Part) -> Loaded:
        with jax.enable_x64(wide):
            return _load(inputs, part)

    with ThreadPoolExecutor(1) as reader:
        pending = reader.submit(read, wanted[0]) if wanted else None
        for part in wanted[1:] + [None] * bool(wanted):
            assert pending is not None
            loaded = pending.result()
            pending = reader.submit(read, part) if part is not None else None
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


@compiled()
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
                f"{count} NaN or infinite of {loaded.part.stop - loaded.part.start}; if this is "
                f"no weight but a mask, exclude: [{re.escape(loaded.part.name) + '$'!r}] keeps "
                "the base's"
            )


def _takes_part(config: MergeConfig, name: str, stored: Stored) -> bool:
    """Floating parameters that no pattern excludes."""
    return is_float(stored.dtype) and not is_buffer(name, stored) and not _excluded(config, name)


def _most_rows(config: MergeConfig, base: Folder) -> int:
    """Rows of the matrix that has most of them: where it is merged, the embedding."""
    shapes = [stored.shape for stored in _taking_part(config, base).values()]
    return max((shape[0] for shape in shapes if len(shape) == 2), default=0)


def _taking_part(config: MergeConfig, folder: Folder) -> dict[str, Stored]:
    return {n: s for n, s in folder.tensors.items() if _takes_part(config, n, s)}


def _excluded(config: MergeConfig, name: str) -> bool:
    return any(re.search(pattern, name) for pattern in config.exclude)


def _check_tensors(config: MergeConfig, base: Folder, expert: Folder) -> None:
    wanted, others = _taking_part(config, base), _taking_part(config, expert)
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
        if not is_float(own.dtype):
            raise MergeError(
                f"expert {expert.path}: {name}: expected floating-point weights, got {own.dtype} "
                "(quantized checkpoints are not merged)"
            )


def _check_constants(config: MergeConfig, base: Folder, expert: Folder) -> None:
    """What is copied from the base must be the same in the experts, where they have it."""
    for name in sorted(base.tensors.keys() & expert.tensors.keys()):
        ours, theirs = base.tensors[name], expert.tensors[name]
        if _excluded(config, name) or _takes_part(config, name, ours):
            continue
        excluding = "('exclude' keeps the base's)"
        if FREQUENCIES.search(name) and is_float(ours.dtype) and is_float(theirs.dtype):
            if not same_frequencies(base.view(name), expert.view(name)):
                raise MergeError(
                    f"expert {expert.path}: {name}: expected the base's RoPE frequencies, got "
                    f"others {excluding}"
                )
        elif is_buffer(name, ours):
            continue
        elif is_float(theirs.dtype):
            raise MergeError(
                f"base {base.path}: {name}: expected floating-point weights like the expert's, "
                f"got {ours.dtype} {excluding}"
            )
        elif _is_table(ours) and ours.shape == theirs.shape and not _equal(ours, theirs):
            raise MergeError(
                f"expert {expert.path}: {name}: expected the base's values, since "
                f"{ours.dtype} cannot be merged, got others {excluding}"
            )


def _is_table(stored: Stored) -> bool:
    """Several integers; one alone counts something, and booleans are masks."""
    return math.prod(stored.shape) > 1 and stored.dtype != np.bool_


def _tied_alike(base: Folder, expert: Folder) -> Folder:
    """The expert as if it stored a head that is its embedding as often as the base: once or twice.

    Versions of a library differ in it. Without the head, the base's would stand beside a merged
    embedding.
    """
    tensors = dict(expert.tensors)
    for name in sorted(base.tensors.keys() - tensors.keys()):
        twin = _twin(base.tensors, name, tensors)
        if twin is not None:
            tensors[name] = tensors[twin]
    for name in sorted(tensors.keys() - base.tensors.keys()):
        if HEADS.search(name) and _twin(tensors, name, base.tensors) is not None:
            del tensors[name]
    return expert._replace(tensors=tensors)


def _twin(tensors: dict[str, Stored], name: str, others: Iterable[str]) -> str | None:
    """Which of others is the head of an embedding of this name, or the embedding of a head."""
    head = bool(HEADS.search(name))
    for other in sorted(tensors.keys() & set(others) - {name}):
        pair = tensors[name], tensors[other]
        matrices = all(len(one.shape) == 2 and is_float(one.dtype) for one in pair)
        if matrices and bool(HEADS.search(other)) != head and _equal(*pair):
            return other
    return None


def _tied(config: MergeConfig, sources: list[Folder]) -> dict[str, str]:
    """Matrices that are equal in every checkpoint: one tensor that is stored several times."""
    base = sources[0].tensors
    alike: dict[tuple, list[str]] = {}
    for name, stored in base.items():
        if len(stored.shape) < 2 or not is_float(stored.dtype) or is_buffer(name, stored):
            continue
        if all(name in source.tensors for source in sources):
            sample = tuple(_sample(source.tensors[name]) for source in sources)
            alike.setdefault((stored.shape, sample), []).append(name)
    found: dict[str, str] = {}
    for names in alike.values():
        first, *others = sorted(names, key=lambda name: (bool(HEADS.search(name)), name))
        for name in others:
            if not all(_equal(s.tensors[first], s.tensors[name]) for s in sources):
                continue
            if all(_equal(base[name], s.tensors[name]) for s in sources[1:]):
                continue  # nobody moved it: every merge leaves both alone
            excluded = {n: _excluded(config, n) for n in (first, name)}
            if all(excluded.values()):
                continue
            if any(excluded.values()):
                one, other = sorted(excluded, key=lambda n: not excluded[n])
                raise MergeError(
                    f"exclude: names {one} but not {other}, which is the same tensor in every "
                    "checkpoint (tied); expected both or none"
                )
            found[name] = first
    return found


def _sample(stored: Stored, most: int = 64) -> tuple[str, bytes]:
    """A few entries from all over a tensor, to tell it from others without reading it."""
    size = math.prod(stored.shape)
    flat = np.empty(0, stored.dtype)
    if size:
        flat = np.memmap(stored.file, stored.dtype, "r", stored.offset, (size,))
    return stored.dtype.name, np.array(flat[:: max(size // most, 1)]).tobytes()


def _equal(one: Stored, other: Stored) -> bool:
    """Whether two tensors hold the same bits."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    size = math.prod(one.shape)
    for start in range(0, size, PART):
        pair = [np.empty(min(PART, size - start), one.dtype) for _ in range(2)]
        for stored, values in zip((one, other), pair, strict=True):
            read_entries(stored, start, values)
        if pair[0].tobytes() != pair[1].tobytes():
            return False
    return True


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
