"""Hugging Face model folders: their `config.json` and where each tensor lies in their safetensors.

Weights are views of memory-mapped files; nothing is read before it is asked for, and nothing is
ever unpickled.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxmethods.errors import UserError
from jaxmethods.files import no_folder

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""Element types of safetensors files that we read."""
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")
LARGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""
COMPANIONS = {".bpe", ".jinja", ".json", ".model", ".py", ".spm", ".tiktoken", ".txt"}
"""Kinds of files that belong to a model beside its weights: tokenizer, preprocessor, templates, and
the code that `auto_map` names."""
TEMPLATES = "additional_chat_templates"


class HubError(UserError):
    """A model folder that cannot be read or written; the message is one line."""


class Stored(NamedTuple):
    """Where one tensor lies on disk."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    """Bytes from the beginning of the file."""


class Folder(NamedTuple):
    """A model folder whose headers have been read, and nothing else."""

    path: Path
    config: dict[str, Any]
    """The content of `config.json`."""
    tensors: dict[str, Stored]

    def view(self, name: str) -> np.ndarray:
        """The tensor as a read-only view of the mapped file."""
        stored = self.tensors[name]
        if 0 in stored.shape:
            return np.empty(stored.shape, stored.dtype)
        return np.memmap(stored.file, stored.dtype, "r", stored.offset, stored.shape)


def open_folder(path: str | Path) -> Folder:
    """Reads `config.json` and the headers of all safetensors files.

    Args:
        path: a model folder.

    Returns:
        Config and where every tensor lies; weights are not read yet.

    Raises:
        HubError: no folder, no or malformed config, no safetensors (only pickled weights, say), a
            file that is no safetensors file, or an index that doesn't fit its files.
    """
    path = Path(path)
    if not path.is_dir():
        raise HubError(no_folder(path))
    config = read_json(path / "config.json")
    if (path / "adapter_config.json").is_file() and list(path.glob("adapter_model.*")):
        raise HubError(
            f"model {path}: adapter_config.json says that an adapter belongs to these weights; "
            "merge it into them first, or move adapter_config.json and adapter_model.* away"
        )
    tensors: dict[str, Stored] = {}
    for file in weight_files(path, config):
        tensors |= _read_header(file)
    return Folder(path, config, tensors)


def weight_files(path: Path, config: Mapping[str, Any]) -> list[Path]:
    """The files of a folder that hold its weights, in the order in which `transformers` looks.

    The file or index that `transformers_weights` names; else `model.safetensors`, whatever index
    an earlier save has left beside it; else the files of `model.safetensors.index.json`. Besides
    those, a complete set of `model-00001-of-0000N.safetensors` whose index is lost.

    Args:
        path: a model folder.
        config: the content of its `config.json`.

    Returns:
        The files.

    Raises:
        HubError: there are none of these, an index doesn't fit its files, or a part is missing.
    """
    named = config.get("transformers_weights")
    if named is not None:
        if not isinstance(named, str) or Path(named).name != named or not named:
            raise HubError(
                f"model config {path / 'config.json'}: transformers_weights: expected the name of "
                f"a file beside it, got {named!r}"
            )
        return _indexed(path, path / named) if named.endswith(".json") else [path / named]
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if (path / INDEX).is_file():
        return _indexed(path, path / INDEX)
    return _shards_without_index(path)


def companions(path: str | Path) -> list[Path]:
    """Files of a model folder that belong to it beside config and weights, relative to it.

    Args:
        path: a model folder.

    Returns:
        Paths of tokenizer, templates and code, relative to the folder.
    """
    path = Path(path)
    found = [
        file
        for file in [*path.iterdir(), *(path / TEMPLATES).glob("*.jinja")]
        if file.suffix in COMPANIONS and file.is_file()
    ]
    return sorted(
        file.relative_to(path)
        for file in found
        if file.name != "config.json" and not file.name.endswith(".index.json")
    )


def open_file(path: str | Path) -> Folder:
    """Reads the header of one safetensors file: a folder without a config.

    Args:
        path: a safetensors file.

    Returns:
        Where every tensor lies; weights are not read yet.
    """
    return Folder(Path(path), {}, _read_header(Path(path)))


def some_of(names: Sequence[str], most: int = 3) -> str:
    """The first names and how many more there are, for a message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _read_header(file: Path) -> dict[str, Stored]:
    """The format: 8 bytes (little endian) say how long the JSON header is; then the data."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            size = os.fstat(stream.fileno()).st_size
            if size < 8 or length > min(LARGEST_HEADER, size - 8):
                raise ValueError("the file is cut off")
            header = json.loads(stream.read(length))
        # Holes, overlaps, lengths, numbers that are none: refused by the format's own reader.
        with safe_open(file, framework="np"):
            pass
        header.pop("__metadata__", None)
        return {name: _stored(file, entry, 8 + length, size) for name, entry in header.items()}
    except OSError as error:
        raise HubError(f"model file {file}: cannot be read ({error.strerror})") from error
    except (
        ValueError, TypeError, KeyError, AttributeError, RecursionError, SafetensorError
    ) as error:  # fmt: skip
        raise HubError(f"model file {file}: not a valid safetensors file ({error})") from error


def _stored(file: Path, entry: Mapping[str, Any], start: int, size: int) -> Stored:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"element type {entry['dtype']} is not supported")
    dtype, shape = DTYPES[entry["dtype"]], tuple(int(n) for n in entry["shape"])
    begin, end = entry["data_offsets"]
    if min(shape, default=0) < 0 or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError("a tensor's length doesn't fit its shape")
    if begin < 0 or start + end > size:
        raise ValueError("the file is cut off")
    return Stored(file, dtype, shape, start + begin)


def _indexed(path: Path, index: Path) -> list[Path]:
    """The files of an index. A tensor that several hold is the last one's, as in `transformers`."""
    weight_map = _weight_map(index)
    files = [path / file for file in sorted(set(weight_map.values()))]
    held = {name for file in files for name in _read_header(file)}
    absent = sorted(set(weight_map) - held)
    if absent:
        raise HubError(f"model {path}: {index.name} names {some_of(absent)}, which no file holds")
    return files


def _shards_without_index(path: Path) -> list[Path]:
    pickled = sorted(file.name for file in path.glob("*.bin"))
    hint = f"; {some_of(pickled)} may run code when opened and is not read" if pickled else ""
    others = sorted(file.name for file in path.glob("*.safetensors"))
    if not others:
        raise HubError(f"model {path}: holds no *.safetensors file{hint}")
    shards = [match for match in map(SHARD.fullmatch, others) if match]
    if not shards:
        raise HubError(
            f"model {path}: holds neither {WEIGHTS} nor {INDEX}, and {some_of(others)} may be "
            f"anything{hint}; rename the file that holds the weights to {WEIGHTS}"
        )
    wanted = int(shards[0][2])
    found = {int(match[1]) for match in shards}
    if {int(match[2]) for match in shards} != {wanted} or found != set(range(1, wanted + 1)):
        raise HubError(
            f"model {path}: without {INDEX}, expected all {wanted} files of the weights, got "
            f"{some_of([match[0] for match in shards])}"
        )
    return [path / match[0] for match in shards]


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise HubError(f"model file {index}: expected a weight_map of tensors to files")
    for file in weight_map.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise HubError(f"model file {index}: expected names of files beside it, got {file!r}")
    return weight_map


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object of a file of a model folder.

    Raises:
        HubError: it can't be read, or is no JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise HubError(f"model file {file}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise HubError(f"model file {file}: not valid JSON") from error
    if not isinstance(content, dict):
        raise HubError(f"model file {file}: expected a JSON object")
    return content
