r"""Static merges of checkpoints that don't fit in memory together.

    config = MergeConfig(base="base", experts=["a", "b"], method="ties", density=0.2)
    merge_checkpoints(config, "merged")

A tensor (or a range of its entries) of every expert is in memory at a time. Results are those of
the functions on whole trees. TIES over whole experts reads them three times, PCB five times: order
statistics are found exactly from two histograms of bit patterns. The majority sign, which TIES
needs only where kept entries cancel exactly, is counted while tensors are merged; the few parts
that need it are then merged again.

The result has the base's names, types and other files; it appears under its name when it is whole,
and a merge that fails leaves nothing behind.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.merging import card, competition, part_merges
from jaxmethods.merging.checkpoints import (
    PART,
    Inputs,
    Loaded,
    MergeError,
    Part,
    coefficients,
    is_wide,
    load,
    open_inputs,
    parts,
    read_entries,
)
from jaxmethods.merging.compatibility import is_buffer
from jaxmethods.merging.merge_config import MergeConfig
from jaxmethods.merging.order_statistics import streamed_kth_smallest
from jaxmethods.merging.sign_election import count
from jaxmethods.models.hub import INDEX
from jaxmethods.models.tensor_files import Spec, TensorFiles

NOT_COPIED = re.compile(
    r"[.](safetensors|bin|pt|pth|ckpt|pkl|pickle|h5|msgpack|onnx|onnx_data|gguf|ggml|ot|tflite"
    r"|npz|npy)$|[.]index[.]json$|^README[.]md$|^[.]|^(checkpoint-\d+|runs|logs|__pycache__)$",
    re.IGNORECASE,
)
"""Files and folders of the base's folder that aren't copied: weights in all formats, their indices,
the card, what is hidden, and what trainers leave. All others are: config, tokenizer, chat
templates, preprocessor, custom code."""
WEIGHTS = "model.safetensors"
Report = Callable[[int, int], None]
"""Told (bytes read, bytes to read in all) after every part."""


class Summary(NamedTuple):
    """What a merge did."""

    merged: int
    """Tensors."""
    copied: int
    """Tensors that are the base's."""
    read: int
    """Bytes of tensors that were merged, all passes."""
    written: int
    """Bytes of weights."""
    seconds: float


def merge_checkpoints(
    config: MergeConfig, out: str | Path, report: Report = lambda done, total: None
) -> Summary:
    """Merges what the config names into a new folder.

    Args:
        out: must not exist, or be an empty folder.

    Raises:
        MergeError: the checkpoints don't fit each other (see `open_inputs`), hold values that are
            not finite, or `out` is there.
        HubError: a checkpoint cannot be read.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MergeError(f"{out}: is there already; expected a new or empty folder")
    started = time.monotonic()
    inputs = open_inputs(config)
    temporary = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        with card.hashing(inputs.sources() if config.card else []) as hashes:
            wide = jax.enable_x64(True) if is_wide(inputs) else nullcontext()
            with wide, TensorFiles(temporary, layout(inputs)) as files:
                read = _Run(inputs, files, report).run()
            _write_index(inputs, temporary)
            _copy_files(inputs.base.path, temporary)
            if config.card:
                text = card.describe(inputs, hashes())
                (temporary / "README.md").write_text(text, encoding="utf-8")
        temporary.chmod(0o755)
        os.replace(temporary, out)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise MergeError(f"{out}: cannot be made: {error.strerror or error}{where}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    tensors, merged = inputs.base.tensors, len(inputs.merged) + len(inputs.tied)
    written = sum(Spec(stored.dtype, stored.shape).nbytes() for stored in tensors.values())
    return Summary(merged, len(tensors) - merged, read, written, time.monotonic() - started)


def layout(inputs: Inputs) -> dict[str, dict[str, Spec]]:
    """The base's files and what is in them; a single file gets the name that all readers know."""
    files: dict[str, dict[str, Spec]] = {}
    for name, stored in inputs.base.tensors.items():
        files.setdefault(stored.file.name, {})[name] = Spec(stored.dtype, stored.shape)
    if len(files) == 1:
        return {WEIGHTS: next(iter(files.values()))}
    if WEIGHTS in files:  # readers would take that one for all of it
        names = [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
        return dict(zip(names, files.values(), strict=True))
    return files


class _Run:
    """The passes over the experts."""

    def __init__(self, inputs: Inputs, files: TensorFiles, report: Report):
        self._inputs, self._files, self._report = inputs, files, report
        self._config = inputs.config
        self._parts = parts(inputs, whole=not part_merges.merges_in_parts(inputs.config))
        self._coefficients = {
            name: None if value is None else jnp.asarray(value, jnp.float32)
            for name, value in coefficients(inputs).items()
        }
        self._names: dict[str, list[str]] = {name: [name] for name in inputs.merged}
        for name, first in inputs.tied.items():
            self._names[first].append(name)
        # Order statistics of float64 are found in four passes over 16 bits each, others in two.
        self._wide = is_wide(inputs)
        self._counting = 4 if self._wide else 2
        self._read, self._passes, self._checked = 0, 1, False

    def run(self) -> int:
        """Writes every tensor; returns the bytes read."""
        self._copy_the_rest()
        if not part_merges.needs_whole_experts(self._config):
            merge = part_merges.merge_of(self._config)
            for loaded in self._load(self._parts):
                self._write(loaded.part, merge(loaded, self._coefficient(loaded)))
        elif self._config.method == "pcb":
            self._compete()
        else:
            self._elect()
        return self._read

    def _elect(self) -> None:
        thresholds = self._thresholds()
        undecided, ballots = [], 0

        def merge(wanted: Sequence[Part], majority: float) -> Iterator[tuple[Part, Any]]:
            for loaded in self._load(wanted):
                c = self._coefficient(loaded)
                elected = part_merges.elect(self._config, loaded, thresholds, majority, c)
                self._write(loaded.part, elected.merged)
                yield loaded.part, elected

        for part, elected in merge(self._parts, 1.0):
            ballots += int(elected.ballot)
            undecided += [part] * bool(elected.undecided)
        if ballots <= 0:  # another majority than was taken for granted
            for _ in merge(undecided, float(np.sign(ballots))):
                pass

    def _thresholds(self) -> jax.Array:
        density, size = self._config.value("density"), self._size()
        rank = size - count(density, size)
        tasks = len(self._inputs.experts)
        if density == 0 or rank == 0:
            return jnp.full(tasks, 0.0 if density else jnp.inf, jnp.float32)
        self._passes = 1 + self._counting

        def magnitudes() -> Iterator[jax.Array]:
            for loaded in self._load(self._parts):
                vectors = part_merges.vectors_of(self._config, loaded)
                yield self._comparable(jnp.abs(vectors).reshape(tasks, -1))

        return jnp.asarray(streamed_kth_smallest(magnitudes, [rank])[0])

    def _compete(self) -> None:
        self._passes = 1 + 2 * self._counting
        ranks = competition.order_ranks(self._size(), self._config.value("ratio"))

        def magnitudes() -> Iterator[jax.Array]:
            for loaded in self._load(self._parts):
                yield self._comparable(jnp.abs(part_merges.vectors_of(self._config, loaded)))

        low, high = map(jnp.asarray, streamed_kth_smallest(magnitudes, ranks.magnitude))

        def competing() -> Iterator[jax.Array]:
            for loaded in self._load(self._parts):
                competing = part_merges.compete(loaded.base, loaded.stack, low, high)
                yield self._comparable(competing)

        wanted = [ranks.competitiveness, self._size()]
        floor, top = map(jnp.asarray, streamed_kth_smallest(competing, wanted))
        limits = competition.Limits(low, high, floor, top)
        for loaded in self._load(self._parts):
            c = self._coefficient(loaded)
            merged = part_merges.merge_competing(loaded.base, loaded.stack, limits, c)
            self._write(loaded.part, merged)

    def _comparable(self, values: jax.Array) -> jax.Array:
        """In the type of the widest tensor, since only keys of one type have one order."""
        return values.astype(jnp.float64) if self._wide else values

    def _load(self, wanted: Sequence[Part]) -> Iterator[Loaded]:
        total = self._passes * sum(self._bytes(part) for part in self._parts)
        for loaded in load(self._inputs, wanted, check=not self._checked):
            yield loaded
            self._read += self._bytes(loaded.part)
            self._report(self._read, max(total, self._read))
        self._checked = True

    def _bytes(self, part: Part) -> int:
        width = [source.tensors[part.name].dtype.itemsize for source in self._inputs.sources()]
        return (part.stop - part.start) * sum(width)

    def _size(self) -> int:
        return sum(part.stop - part.start for part in self._parts)

    def _coefficient(self, loaded: Loaded) -> Any:
        return self._coefficients[loaded.part.name]

    def _write(self, part: Part, merged: jax.Array) -> None:
        dtype = self._inputs.base.tensors[part.name].dtype
        values = np.asarray(merged)
        with np.errstate(over="ignore"):  # it is looked for below
            stored = values.astype(dtype, copy=False)
        if not np.isfinite(stored).all():
            raise MergeError(f"{part.name}: {self._why_not_finite(values, dtype)}")
        for name in self._names[part.name]:
            self._files.write(name, stored, part.start)

    def _why_not_finite(self, values: np.ndarray, dtype: np.dtype) -> str:
        method = self._config.method
        leave = "or exclude this tensor, which keeps the base's"
        if np.isnan(values).any() and not np.isinf(values).any():
            return f"{method} of these experts gives NaN; take other parameters {leave}"
        return (
            f"expected merged weights that fit {dtype}, got larger ones by {method}; take a base "
            f"of a wider type, smaller coefficients {leave}"
        )

    def _copy_the_rest(self) -> None:
        base = self._inputs.base
        for name in base.tensors.keys() - set(self._inputs.merged) - set(self._inputs.tied):
            stored = base.tensors[name]
            size = math.prod(stored.shape)
            for start in range(0, size, PART):
                values = np.empty(min(PART, size - start), stored.dtype)
                read_entries(stored, start, values)
                if not is_buffer(name, stored) and _is_broken(values):
                    raise MergeError(
                        f"model file {stored.file}: {name}: expected finite weights to copy, got "
                        "NaN or infinity; take another base"
                    )
                self._files.write(name, values, start)


def _is_broken(values: np.ndarray) -> bool:
    """NaN or infinity. Masks of unknown names may hold -inf."""
    if values.dtype.kind in "iub":
        return False
    return bool((np.isnan(values) | np.isposinf(values)).any())


def _write_index(inputs: Inputs, folder: Path) -> None:
    """Says which file holds which tensor, where there are several or the base said so too."""
    files = layout(inputs)
    if len(files) == 1 and not (inputs.base.path / INDEX).is_file():
        return
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    total = sum(spec.nbytes() for tensors in files.values() for spec in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _copy_files(source: Path, folder: Path) -> None:
    """Everything that isn't weights, with subfolders."""
    if not source.is_dir():
        return
    for entry in sorted(source.iterdir()):
        if NOT_COPIED.search(entry.name):
            continue
        if entry.is_dir() and not entry.is_symlink():
            _copy_files(entry, folder / entry.name)
        elif entry.is_file():
            folder.mkdir(exist_ok=True)
            shutil.copyfile(entry, folder / entry.name)
        elif entry.is_symlink() and not entry.exists():
            raise MergeError(f"{entry}: expected a file, got a link to nothing")
