r"""Static merges of checkpoints that don't fit in memory together.

    config = MergeConfig(base="base", experts=["a", "b"], algorithm="ties", density=0.2)
    merge_checkpoints(config, "merged")

A tensor (or a range of its entries) of every expert is in memory at a time. Results are those of
the functions on whole trees. TIES over whole experts reads them three times, PCB five times: order
statistics are found exactly from two histograms of bit patterns.

The result has the base's names, types and other files; it appears under its name when it is whole,
and a merge that fails leaves nothing behind.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.files import new_folder
from jaxmethods.merging.checkpoints import card
from jaxmethods.merging.checkpoints.compatibility import is_buffer
from jaxmethods.merging.checkpoints.inputs import (
    PART,
    Inputs,
    MergeError,
    coefficients,
    is_wide,
    load,
    open_inputs,
    parts,
    read_entries,
)
from jaxmethods.merging.checkpoints.modules import module_folders
from jaxmethods.merging.checkpoints.parts import Loaded, Part
from jaxmethods.merging.config import MergeConfig
from jaxmethods.models.hub.folders import INDEX
from jaxmethods.models.hub.tensor_files import Spec, TensorFiles
from jaxmethods.numerics.order_statistics import streamed_kth_smallest
from jaxmethods.stages import Advance

NOT_COPIED = re.compile(
    r"[.](safetensors|bin|pt|pth|ckpt|pkl|pickle|h5|msgpack|onnx|onnx_data|gguf|ggml|ot|tflite"
    r"|npz|npy)$|[.]index[.]json$|^README[.]md$|^[.]|^(checkpoint-\d+|runs|logs|__pycache__)$",
    re.IGNORECASE,
)
"""Files and folders of the base's folder that aren't copied: weights in all formats, their indices,
the card, what is hidden, and what trainers leave. All others are: config, tokenizer, chat
templates, preprocessor, custom code."""
WEIGHTS = "model.safetensors"


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


def ignore(done: int, total: int) -> None:
    """Shows no progress."""
    del done, total


def merge_checkpoints(config: MergeConfig, out: str | Path, advance: Advance = ignore) -> Summary:
    """Merges what the config names into a new folder.

    Args:
        out: must not exist, or be an empty folder.
        advance: called with (bytes read, bytes to read in all) after every part.

    Raises:
        MergeError: the checkpoints don't fit each other (see `open_inputs`), hold values that are
            not finite, or `out` is there.
        HubError: a checkpoint cannot be read.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MergeError(f"{out}: is there already; expected a new or empty folder")
    inputs = open_inputs(config)
    try:
        with new_folder(out) as folder:
            return write_merged(inputs, folder, advance)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise MergeError(f"{out}: cannot be made: {error.strerror or error}{where}") from error


def write_merged(inputs: Inputs, folder: Path, advance: Advance = ignore) -> Summary:
    """Makes the folder and writes the merged model into it, part by part.

    Args:
        advance: see `merge_checkpoints`.

    Raises:
        MergeError: values are not finite.
        OSError: a file cannot be written.
    """
    folder.mkdir(exist_ok=True)
    with card.hashing(inputs.sources() if inputs.config.card else []) as hashes:
        wide = jax.enable_x64(True) if is_wide(inputs) else nullcontext()
        with wide, TensorFiles(folder, layout(inputs)) as files:
            read = _Passes(inputs, files, advance).run()
        _write_index(inputs, folder)
        _copy_files(inputs.base.path, folder)
        _forget_name_of_weights(inputs.base.config, folder)
        if inputs.config.card:
            text = card.describe(inputs, hashes())
            (folder / "README.md").write_text(text, encoding="utf-8")
    tensors, merged = inputs.base.tensors, len(inputs.merged) + len(inputs.tied)
    written = sum(Spec(stored.dtype, stored.shape).nbytes() for stored in tensors.values())
    return Summary(merged, len(tensors) - merged, read, written)


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


class _Passes:
    """The passes over the experts: a `parts.Passes`."""

    def __init__(self, inputs: Inputs, files: TensorFiles, advance: Advance):
        self._inputs, self._files, self._advance = inputs, files, advance
        self._merge, self._settings = inputs.config.declaration, inputs.config.settings
        self._parts = parts(inputs, whole=not self._merge.may_cut(self._settings))
        self._coefficients = {
            name: None if value is None else jnp.asarray(value, float)  # float64 where x64 is on
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
        merge, settings = self._merge, self._settings
        if merge.in_passes is not None and merge.needs_with(settings) == "experts":
            merge.in_passes(self, settings)
            return self._read
        assert merge.one_part is not None, merge.name
        for loaded, coefficient in self.read():
            self.write(loaded.part, merge.one_part(loaded, coefficient, settings))
        return self._read

    @property
    def experts(self) -> int:
        return len(self._inputs.experts)

    @property
    def entries(self) -> int:
        return sum(part.stop - part.start for part in self._parts)

    def read(self, wanted: Sequence[Part] | None = None) -> Iterator[tuple[Loaded, Any]]:
        total = self._passes * sum(self._bytes(part) for part in self._parts)
        chosen = self._parts if wanted is None else wanted
        for loaded in load(self._inputs, chosen, check=not self._checked):
            yield loaded, self._coefficients[loaded.part.name]
            self._read += self._bytes(loaded.part)
            self._advance(self._read, max(total, self._read))
        self._checked = True

    def select(
        self, values: Callable[[Loaded], jax.Array], ranks: Sequence[int], of: int
    ) -> list[jax.Array]:
        self._passes = 1 + of * self._counting

        def compared() -> Iterator[jax.Array]:
            for loaded, _ in self.read():
                found = values(loaded).reshape(self.experts, -1)
                # In the type of the widest tensor: only keys of one type have one order.
                yield found.astype(jnp.float64) if self._wide else found

        return [jnp.asarray(found) for found in streamed_kth_smallest(compared, ranks)]

    def write(self, part: Part, merged: jax.Array) -> None:
        dtype = self._inputs.base.tensors[part.name].dtype
        values = np.asarray(merged)
        with np.errstate(over="ignore"):  # it is looked for below
            stored = values.astype(dtype, copy=False)
        if not np.isfinite(stored).all():
            raise MergeError(f"{part.name}: {self._why_not_finite(values, dtype)}")
        for name in self._names[part.name]:
            self._files.write(name, stored, part.start)

    def _bytes(self, part: Part) -> int:
        width = [source.tensors[part.name].dtype.itemsize for source in self._inputs.sources()]
        return (part.stop - part.start) * sum(width)

    def _why_not_finite(self, values: np.ndarray, dtype: np.dtype) -> str:
        method = self._merge.name
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
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _forget_name_of_weights(config: dict[str, Any], folder: Path) -> None:
    """Merged weights have the names that all readers know, whatever those of the base are."""
    if config.get("transformers_weights") is not None:
        kept = {name: value for name, value in config.items() if name != "transformers_weights"}
        text = json.dumps(kept, indent=2) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")


def _copy_files(source: Path, folder: Path) -> None:
    """Everything that isn't weights, with subfolders; of modules also the weights."""
    if not source.is_dir():
        return
    for name in module_folders(source):
        shutil.copytree(source / name, folder / name)
    for entry in sorted(source.iterdir()):
        if NOT_COPIED.search(entry.name):
            continue
        if entry.is_dir() and (folder / entry.name).is_dir():  # a module
            continue
        if entry.is_dir() and not entry.is_symlink():
            _copy_files(entry, folder / entry.name)
        elif entry.is_file():
            folder.mkdir(exist_ok=True)
            shutil.copyfile(entry, folder / entry.name)
        elif entry.is_symlink() and not entry.exists():
            raise MergeError(f"{entry}: expected a file, got a link to nothing")
