"""Parameter trees from model folders and back, as a table of their tensors says.

    table = [
        linear("model.layers.{}.mlp.up_proj.weight", "layers/mlp/up/kernel", 64, 96, layers=3),
        whole("model.norm.weight", "final_norm/scale", (64,)),
    ]
    folder = open_folder("path/to/model")
    params = read_params(folder, table, shapes, dtype=jnp.bfloat16)
    write_folder("path/to/copy", folder.config, table, params)

Leaves are put on their devices one after the other, and of a sharded leaf only what a device holds
is read: the host never holds the model, only one leaf of it. Layers of a model are stacked on the
leading axis of a leaf.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from jaxmethods.files import new_folder
from jaxmethods.layout import path_name
from jaxmethods.models.hub.folders import INDEX, Folder, HubError, companions, some_of
from jaxmethods.models.hub.tensors import Tensor


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
            weight is NaN, or finite and doesn't fit `dtype`.
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
        entry, place = source[path_name(path)]
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
        config: the content of `config.json`; `transformers_weights`, which names a file of the
            folder that was read, is left out.
        table: every tensor of the checkpoint, and which leaves it holds.
        params: a tree with these leaves.
        largest_file: bytes; more than that goes into several files and an index.
        extra_files: a model folder whose `companions` (tokenizer, templates, code) are copied
            along.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise HubError(f"model {path}: is there already; write to a new folder")
    written = {name: own for name, own in config.items() if name != "transformers_weights"}
    with new_folder(path) as temporary:
        _write_weights(temporary, list(table), params, largest_file)
        (temporary / "config.json").write_text(
            json.dumps(written, indent=2) + "\n", encoding="utf-8"
        )
        for name in [] if extra_files is None else companions(extra_files):
            (temporary / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(Path(extra_files or "") / name, temporary / name)


def common_type(params: Any) -> np.dtype:
    """The narrowest type that holds all leaves, which `config.json` should name.

    Transformers rounds what it reads to the type that the config names.

    Args:
        params: a tree of arrays.

    Returns:
        The type.
    """
    return np.dtype(reduce(jnp.promote_types, [leaf.dtype for leaf in jax.tree.leaves(params)]))


def check_weights(where: str, name: str, dtype: Any) -> None:
    """Raises `HubError` where a tensor's type says that it holds codes, not weights.

    Args:
        where: the file or folder, for the message.
        name: of the tensor.
        dtype: of the tensor; weights have 16 bits or more.
    """
    if not jnp.issubdtype(dtype, jnp.floating) or jnp.dtype(dtype).itemsize < 2:
        raise HubError(
            f"{where}: {name}: expected floating-point weights, got {dtype} "
            "(quantized checkpoints are not supported)"
        )


def check_numbers(where: str, name: str, values: np.ndarray) -> None:
    """Raises `HubError` where weights are NaN, which no model survives. Infinity may be a mask.

    Args:
        where: the file or folder, for the message.
        name: of the tensor.
        values: of the tensor.
    """
    unknown = np.count_nonzero(np.isnan(values))
    if unknown:
        raise HubError(f"{where}: {name}: expected numbers, got {unknown} NaN of {values.size}")


def as_weights(name: str, tensor: Any) -> np.ndarray:
    """A tensor of a checkpoint that is held as names and arrays, as float32.

    Args:
        name: of the tensor.
        tensor: an array.

    Returns:
        The weights in float32.

    Raises:
        HubError: they are codes, or NaN.
    """
    tensor = np.asarray(tensor)
    check_weights("checkpoint", name, tensor.dtype)
    weights = tensor.astype(np.float32)
    check_numbers("checkpoint", name, weights)
    return weights


def same_values(folder: Folder, name: str, other: str, step: int = 4096) -> bool:
    """Whether two tensors hold the same values; only some rows of them are read at a time.

    Args:
        folder: an opened model folder.
        name, other: of the tensors.
        step: rows at a time.

    Returns:
        True where shapes and all numbers are equal, whatever their types.
    """
    one, two = folder.view(name), folder.view(other)
    wide = jnp.promote_types(one.dtype, two.dtype)
    return one.shape == two.shape and all(
        np.array_equal(one[rows].astype(wide), two[rows].astype(wide))
        for rows in (slice(start, start + step) for start in range(0, len(one), step))
    )


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
    check_numbers(f"model {folder.path}", name, out)
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
        raise HubError(f"model {folder.path}: tensors are missing: {some_of(missing)}")
    extra = [name for name in folder.tensors if name not in expected and not ignore(name)]
    if extra:
        raise HubError(
            f"model {folder.path}: tensors that its config has no use for: {some_of(extra)}"
        )
    for name, shape in expected.items():
        stored = folder.tensors[name]
        if stored.shape != shape:
            raise HubError(
                f"model {folder.path}: {name}: expected shape {shape}, got {stored.shape}"
            )
        check_weights(f"model {folder.path}", name, stored.dtype)


def _write_weights(folder: Path, table: Sequence[Tensor], params: Any, largest: int) -> None:
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    _check_leaves(table, leaves)
    files = _plan(table, leaves, largest)
    weight_map: dict[str, str] = {}
    total = 0
    for number, tensors in enumerate(files, 1):
        several = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        file = several if len(files) > 1 else "model.safetensors"
        content = {name: _stored_form(name, entry, layer, leaves) for name, entry, layer in tensors}
        # `transformers` opens a file only if it says whose layout its tensors have.
        save_file(content, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(content, file)
        # Not of the leaves: a table may begin with rows that no leaf has.
        total += sum(tensor.nbytes for tensor in content.values())
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _check_leaves(table: Sequence[Tensor], leaves: Mapping[str, Any]) -> None:
    """Refuses a tree that the table would write a part of, or more than all of, or no weights."""
    wanted = {leaf for entry in table for leaf in entry.leaves}
    surplus, missing = sorted(leaves.keys() - wanted), sorted(wanted - leaves.keys())
    if surplus:
        raise HubError(
            f"parameters: expected those that a checkpoint has tensors for, got {some_of(surplus)} "
            "too (adapters are merged first, layers that were taken apart are stacked)"
        )
    if missing:
        raise HubError(f"parameters: {some_of(missing)} missing")
    for entry in table:
        for leaf in entry.leaves:
            check_weights("parameters", leaf, leaves[leaf].dtype)
            layers = leaves[leaf].shape[:1]
            # Of fewer layers JAX would give the last one again, of more some would be left out.
            if entry.layers and layers != (entry.layers,):
                raise HubError(
                    f"parameters: {leaf}: expected {entry.layers} layers in front, got shape "
                    f"{leaves[leaf].shape}"
                )


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
