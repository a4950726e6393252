"""Hugging Face model folders: `config.json` and safetensors, in and out, for any model family.

A family says once which tensors a checkpoint has and which leaves of our parameter tree they hold,
as a table of `Tensor`s; reading and writing both follow that table:

    table = [
        linear("model.layers.{}.mlp.up_proj.weight", "layers/mlp/up/kernel", 64, 96, layers=3),
        whole("model.norm.weight", "final_norm/scale", (64,)),
    ]
    folder = open_folder("path/to/model")
    params = read_params(folder, table, shapes, dtype=jnp.bfloat16)
    write_folder("path/to/copy", folder.config, table, params)

Weights are views of memory-mapped files until the moment they are put on a device, one leaf after
the other, and of a sharded leaf only what a device holds is read: the host never holds the model,
only one leaf of it. Layers of a model are stacked on the leading axis of a leaf. Nothing is ever
unpickled.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxmethods.errors import UserError

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
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


def _identity(tensor: np.ndarray) -> list[np.ndarray]:
    return [tensor]


def _only(leaves: Sequence[np.ndarray]) -> np.ndarray:
    (leaf,) = leaves
    return leaf


class Tensor(NamedTuple):
    """One tensor of a checkpoint (of every layer, if it has layers) and the leaves it holds."""

    name: str
    """In the checkpoint; `{}` stands for the number of the layer."""
    shape: tuple[int, ...]
    """In the checkpoint."""
    leaves: tuple[str, ...]
    """Paths of leaves of the parameter tree, "layers/mlp/up/kernel"."""
    layers: int = 0
    """How many there are, stacked on the leaves' leading axis; 0: one tensor, no such axis."""
    split: Callable[[np.ndarray], Sequence[np.ndarray]] = _identity
    """The stored tensor -> the leaves (of one layer). Views, so that nothing is read too early."""
    join: Callable[[Sequence[np.ndarray]], np.ndarray] = _only
    """The leaves (of one layer) -> the stored tensor; undoes `split`."""

    def names(self) -> list[str]:
        """The names in the checkpoint, one for each layer."""
        if not self.layers:
            return [self.name]
        return [self.name.format(layer) for layer in range(self.layers)]


def whole(name: str, leaf: str, shape: Sequence[int], layers: int = 0) -> Tensor:
    """A tensor that is a leaf as it stands: an embedding, a bias, the scale of a norm.

    Args:
        name: the stored tensor's, with {} for the layer.
        leaf: path in the parameter tree.
        shape: of the tensor.
        layers: L where there is one in every layer, else 0.

    Returns:
        One row of a family's table.
    """
    return Tensor(name, tuple(shape), (leaf,), layers)


def linear(name: str, leaf: str, inputs: int, outputs: int, layers: int = 0) -> Tensor:
    """The weight (outputs, inputs) of a linear map, whose leaf is a kernel (inputs, outputs).

    Args:
        name: the stored tensor's, with {} for the layer.
        leaf: path in the parameter tree.
        inputs: width of what it takes.
        outputs: width of what it gives.
        layers: L where there is one in every layer, else 0.

    Returns:
        One row of a family's table.
    """
    return Tensor(
        name,
        (outputs, inputs),
        (leaf,),
        layers,
        split=lambda tensor: [tensor.T],
        join=lambda leaves: _only(leaves).T,
    )


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
        raise HubError(f"model {path}: not a folder")
    config = _read_json(path / "config.json")
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


def read_params(
    folder: Folder,
    table: Iterable[Tensor],
    shapes: Any,
    *,
    dtype: Any = jnp.float32,
    shardings: Any = None,
    ignore: Callable[[str], bool] = lambda name: False,
) -> Any:
    """Reads a parameter tree, leaf by leaf, straight into device arrays.

    Args:
        folder: an opened model folder.
        table: every tensor of the checkpoint, and which leaves it holds.
        shapes: the tree, with a `jax.ShapeDtypeStruct` (or an array) at every leaf.
        dtype: of the leaves; None keeps what is stored. Layers of different types that are stacked
            on one leaf get the narrowest type that holds all of them.
        shardings: one for all leaves, or a tree with one for each; default: the default device.
        ignore: says of a stored name that it is no parameter (a buffer), so that its being there
            is not an error.

    Returns:
        A tree like `shapes` of device arrays.

    Raises:
        HubError: tensors are missing, too many, or of another shape than the config says; or a
            finite weight doesn't fit `dtype`.
    """
    table = list(table)
    _check(folder, table, ignore)
    source = {leaf: (entry, place) for entry in table for place, leaf in enumerate(entry.leaves)}
    if shardings is None:
        shardings = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    if isinstance(shardings, jax.sharding.Sharding):
        one_for_all = shardings
        shardings = jax.tree.map(lambda leaf: one_for_all, shapes)

    def read(path: Any, leaf: Any, sharding: Any) -> jax.Array:
        entry, place = source[path_of(path)]
        return _read_leaf(folder, entry, place, leaf.shape, dtype, sharding)

    return jax.tree_util.tree_map_with_path(read, shapes, shardings)


def write_folder(
    path: str | Path,
    config: Mapping[str, Any],
    table: Iterable[Tensor],
    params: Any,
    *,
    largest_file: int = 5 * 2**30,
    extra_files: str | Path | None = None,
) -> None:
    """Writes a folder that `transformers` opens; one file of weights is on the host at a time.

    The folder appears under its name when it is whole.

    Args:
        path: must not exist, or be an empty folder.
        config: the content of `config.json`.
        table: every tensor of the checkpoint, and which leaves it holds.
        params: a tree with these leaves.
        largest_file: bytes; more than that goes into several files and an index.
        extra_files: a model folder whose `companions` (tokenizer, templates, code) are copied
            along.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise HubError(f"model {path}: is there already; write to a new folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        _write_weights(temporary, list(table), params, largest_file)
        (temporary / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")
        for name in [] if extra_files is None else companions(extra_files):
            (temporary / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(Path(extra_files or "") / name, temporary / name)
        temporary.chmod(0o755)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def common_type(params: Any) -> np.dtype:
    """The narrowest type that holds all leaves, which `config.json` should name.

    Transformers rounds what it reads to the type that the config names.

    Args:
        params: a tree of arrays.

    Returns:
        The type.
    """
    return np.dtype(reduce(jnp.promote_types, [leaf.dtype for leaf in jax.tree.leaves(params)]))


def path_of(path: Any) -> str:
    """A pytree path as `Tensor.leaves` writes it: "layers/mlp/up/kernel".

    Args:
        path: what `jax.tree_util.tree_map_with_path` gives.

    Returns:
        The names, joined by slashes.
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _read_leaf(
    folder: Folder, entry: Tensor, place: int, shape: tuple, dtype: Any, sharding: Any
) -> jax.Array:
    names = entry.names()
    if dtype is None:
        dtype = reduce(jnp.promote_types, [folder.tensors[name].dtype for name in names])
    dtype = np.dtype(dtype)
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise HubError(
            f"model {folder.path}: {names[0]}: float64 weights are kept only with jax_enable_x64; "
            "switch it on or pass dtype=jnp.float32"
        )

    def part(index: Any) -> np.ndarray:
        if not entry.layers:
            tensor = entry.split(folder.view(entry.name))[place][index]
            out = np.empty(tensor.shape, dtype)
            _convert(folder, entry.name, tensor, out)
            return out
        layers = range(*index[0].indices(entry.layers))
        sizes = [len(range(*cut.indices(n))) for cut, n in zip(index, shape, strict=True)]
        stack = np.empty(sizes, dtype)
        for row, layer in zip(stack, layers, strict=True):
            tensor = entry.split(folder.view(names[layer]))[place][index[1:]]
            _convert(folder, names[layer], tensor, row)
        return stack

    array = jax.make_array_from_callback(shape, sharding, part, dtype=dtype)
    # Transfers are asynchronous: without waiting, every leaf would be on the host at once.
    return jax.block_until_ready(array)


def _convert(folder: Folder, name: str, tensor: np.ndarray, out: np.ndarray) -> None:
    """Fills `out` with the tensor; what is finite stays finite."""
    with np.errstate(over="ignore"):
        out[...] = tensor
    if jnp.finfo(tensor.dtype).max <= jnp.finfo(out.dtype).max:
        return
    lost = np.count_nonzero(~np.isfinite(out) & np.isfinite(tensor))
    if lost:
        raise HubError(
            f"model {folder.path}: {name}: {lost} finite {tensor.dtype} weights are infinite as "
            f"{out.dtype}; load it with a wider dtype"
        )


def _check(folder: Folder, table: Sequence[Tensor], ignore: Callable[[str], bool]) -> None:
    expected = {name: entry.shape for entry in table for name in entry.names()}
    missing = [name for name in expected if name not in folder.tensors]
    if missing:
        raise HubError(f"model {folder.path}: tensors are missing: {_some(missing)}")
    extra = [name for name in folder.tensors if name not in expected and not ignore(name)]
    if extra:
        raise HubError(
            f"model {folder.path}: tensors that its config has no use for: {_some(extra)}"
        )
    for name, shape in expected.items():
        stored = folder.tensors[name]
        if stored.shape != shape:
            raise HubError(
                f"model {folder.path}: {name}: expected shape {shape}, got {stored.shape}"
            )
        if not jnp.issubdtype(stored.dtype, jnp.floating):
            raise HubError(
                f"model {folder.path}: {name}: expected floating-point weights, got {stored.dtype} "
                "(quantized checkpoints are not supported)"
            )


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
        raise HubError(f"model {path}: {index.name} names {_some(absent)}, which no file holds")
    return files


def _shards_without_index(path: Path) -> list[Path]:
    pickled = sorted(file.name for file in path.glob("*.bin"))
    hint = f"; {_some(pickled)} may run code when opened and is not read" if pickled else ""
    others = sorted(file.name for file in path.glob("*.safetensors"))
    if not others:
        raise HubError(f"model {path}: holds no *.safetensors file{hint}")
    shards = [match for match in map(SHARD.fullmatch, others) if match]
    if not shards:
        raise HubError(
            f"model {path}: holds neither {WEIGHTS} nor {INDEX}, and {_some(others)} may be "
            f"anything{hint}; rename the file that holds the weights to {WEIGHTS}"
        )
    wanted = int(shards[0][2])
    found = {int(match[1]) for match in shards}
    if {int(match[2]) for match in shards} != {wanted} or found != set(range(1, wanted + 1)):
        raise HubError(
            f"model {path}: without {INDEX}, expected all {wanted} files of the weights, got "
            f"{_some([match[0] for match in shards])}"
        )
    return [path / match[0] for match in shards]


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise HubError(f"model file {index}: expected a weight_map of tensors to files")
    for file in weight_map.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise HubError(f"model file {index}: expected names of files beside it, got {file!r}")
    return weight_map


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise HubError(f"model file {file}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise HubError(f"model file {file}: not valid JSON") from error
    if not isinstance(content, dict):
        raise HubError(f"model file {file}: expected a JSON object")
    return content


def _write_weights(folder: Path, table: Sequence[Tensor], params: Any, largest: int) -> None:
    leaves = {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    files = _plan(table, leaves, largest)
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(files, 1):
        several = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        file = several if len(files) > 1 else "model.safetensors"
        content = {name: _stored_form(name, entry, layer, leaves) for name, entry, layer in tensors}
        # `transformers` opens a file only if it says whose layout its tensors have.
        save_file(content, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(content, file)
    if len(files) > 1:
        total = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _plan(
    table: Sequence[Tensor], leaves: Mapping[str, Any], largest: int
) -> list[list[tuple[str, Tensor, int]]]:
    """Deals the tensors out to files of at most `largest` bytes (or of one larger tensor)."""
    files: list[list[tuple[str, Tensor, int]]] = [[]]
    filled = 0
    for entry in table:
        size = math.prod(entry.shape) * leaves[entry.leaves[0]].dtype.itemsize
        for layer, name in enumerate(entry.names()):
            if files[-1] and filled + size > largest:
                files.append([])
                filled = 0
            files[-1].append((name, entry, layer))
            filled += size
    return files


def _stored_form(name: str, entry: Tensor, layer: int, leaves: Mapping[str, Any]) -> np.ndarray:
    parts = [leaves[leaf][layer] if entry.layers else leaves[leaf] for leaf in entry.leaves]
    dtype = reduce(jnp.promote_types, [part.dtype for part in parts])
    arrays = [np.asarray(jax.device_get(part)) for part in parts]
    tensor = entry.join([array.astype(dtype, copy=False) for array in arrays])
    if tensor.shape != entry.shape:
        raise HubError(
            f"{entry.name}: expected parameters of shape {entry.shape}, got {tensor.shape}"
        )
    wrong = tensor.size - np.count_nonzero(np.isfinite(tensor))
    if wrong:
        raise HubError(f"{name}: expected finite weights, got {wrong} NaN or infinite ones")
    return np.asarray(tensor, order="C")  # ascontiguousarray would make a vector of a number


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
