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

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
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
    load,
    open_inputs,
    parts,
    read_entries,
)
from jaxmethods.merging.merge_config import MergeConfig
from jaxmethods.merging.order_statistics import streamed_kth_smallest
from jaxmethods.models.tensor_files import Spec, TensorFiles

COPIED = {".json", ".txt", ".model", ".jinja"}
"""Kinds of files that are copied from the base's folder: config, tokenizer, preprocessor."""
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
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        with card.hashing(inputs.sources() if config.card else []) as hashes:
            with TensorFiles(temporary, layout(inputs)) as files:
                read = _Run(inputs, files, report).run()
            _copy_files(inputs, temporary)
            if config.card:
                text = card.describe(inputs, hashes())
                (temporary / "README.md").write_text(text, encoding="utf-8")
        temporary.chmod(0o755)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    tensors, merged = inputs.base.tensors, len(inputs.merged)
    written = sum(Spec(stored.dtype, stored.shape).nbytes() for stored in tensors.values())
    return Summary(merged, len(tensors) - merged, read, written, time.monotonic() - started)


def layout(inputs: Inputs) -> dict[str, dict[str, Spec]]:
    """The base's files and what is in them; a single file gets the name that all readers know."""
    files: dict[str, dict[str, Spec]] = {}
    for name, stored in inputs.base.tensors.items():
        files.setdefault(stored.file.name, {})[name] = Spec(stored.dtype, stored.shape)
    return files if len(files) > 1 else {WEIGHTS: next(iter(files.values()))}


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
        rank = size - int(density * size)
        tasks = len(self._inputs.experts)
        if density == 0 or rank == 0:
            return jnp.full(tasks, 0.0 if density else jnp.inf)
        self._passes = 3

        def magnitudes() -> Iterator[jax.Array]:
            for loaded in self._load(self._parts):
                yield jnp.abs(part_merges.vectors_of(self._config, loaded)).reshape(tasks, -1)

        return jnp.asarray(streamed_kth_smallest(magnitudes, [rank])[0])

    def _compete(self) -> None:
        self._passes = 5
        ranks = competition.order_ranks(self._size(), self._config.value("ratio"))

        def magnitudes() -> Iterator[jax.Array]:
            for loaded in self._load(self._parts):
                yield jnp.abs(part_merges.vectors_of(self._config, loaded))

        low, high = map(jnp.asarray, streamed_kth_smallest(magnitudes, ranks.magnitude))

        def competing() -> Iterator[jax.Array]:
            for loaded in self._load(self._parts):
                yield part_merges.compete(loaded.base, loaded.stack, low, high)

        wanted = [ranks.competitiveness, self._size()]
        floor, top = map(jnp.asarray, streamed_kth_smallest(competing, wanted))
        limits = competition.Limits(low, high, floor, top)
        for loaded in self._load(self._parts):
            c = self._coefficient(loaded)
            merged = part_merges.merge_competing(loaded.base, loaded.stack, limits, c)
            self._write(loaded.part, merged)

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
        values = np.asarray(merged).astype(dtype, copy=False)
        if dtype == np.float16 and not np.isfinite(values).all():
            raise MergeError(f"{part.name}: expected merged weights that fit float16, got larger")
        self._files.write(part.name, values, part.start)

    def _copy_the_rest(self) -> None:
        base = self._inputs.base
        for name in base.tensors.keys() - set(self._inputs.merged):
            stored = base.tensors[name]
            size = math.prod(stored.shape)
            for start in range(0, size, PART):
                values = np.empty(min(PART, size - start), stored.dtype)
                read_entries(stored, start, values)
                self._files.write(name, values, start)


def _copy_files(inputs: Inputs, folder: Path) -> None:
    if not inputs.base.path.is_dir():
        return
    for file in inputs.base.path.iterdir():
        if file.suffix in COPIED and file.is_file():
            shutil.copyfile(file, folder / file.name)
