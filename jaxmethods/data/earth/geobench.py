"""GEO-Bench's layout: an HDF5 file for each sample, an array for each band, splits as JSON.

    m-eurosat/default_partition.json                  {"train": [sample, ...], "valid", "test"}
    m-eurosat/SAMPLE.hdf5                             "04 - Red" [H, W], ..., attribute "pickle"

Bands of two of the published datasets have wrong names (geo-bench issues 28 and 29): what
m-eurosat calls 08A is B9, and so on up to what it calls 12 and is B8A. They are relabeled here, so
that a band's name is what it is. Labels of classes stand in a pickled attribute, which is searched
for the label and never unpickled: unpickling runs what a file says.
"""

from __future__ import annotations

import ast
import json
import pickletools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmethods.data.earth.sensors import EUROSAT_MS, SENTINEL2, places_of
from jaxmethods.errors import DataError, UserError, first_line, import_extra

BRICK_KILN = (
    *("B1", "B2", "B3", "B4", "B5", "B7", "B8A", "B8", "B11", "B12"),
    *("TCI_R", "TCI_G", "TCI_B"),
)
RELABELED = {
    "m-eurosat": dict(zip(SENTINEL2, EUROSAT_MS, strict=True)),
    "m-brick-kiln": dict(zip(SENTINEL2, BRICK_KILN, strict=True)),
}
"""Dataset -> what a band is called in its files -> what it is."""
COLORS = {"Red": "R", "Green": "G", "Blue": "B"}
LABEL = "label"
DATE = re.compile(r"_(NoDate|\d{4}-\d\d-\d\d.*)$")
NUMBERED = re.compile(r"0*(\d+)(A?) - ")
SPLITS = ("train", "valid", "test")


class Samples(NamedTuple):
    """The samples of one split."""

    images: np.ndarray
    """[N, H, W, C] of the type of the files."""
    labels: np.ndarray
    """[N] int32 classes, or [N, H, W] of pixels."""
    names: tuple[str, ...]
    band_names: tuple[str, ...]


def read_geobench(
    folder: Path | str, split: str, bands: Sequence[str], *, partition: str = "default"
) -> Samples:
    """Reads the samples of a split. All of them are held in memory.

    Args:
        folder: of one dataset, by its published name.
        split: "train", "valid" or "test".
        bands: which, by what they are ("B4", "R"), in this order.
        partition: which file of splits: "default", "0.01x_train".

    Returns:
        Images and labels, in the order of the split.

    Raises:
        DataError: names the file, and says what is wrong with it.
        MissingExtraError: h5py is not installed.
    """
    folder = Path(folder)
    names = _names(folder / f"{partition}_partition.json", split)
    renamed = RELABELED.get(folder.name, {})
    images, labels = [], []
    for name in names:
        path = folder / f"{name}.hdf5"
        if path.parent != folder or not path.is_file():
            raise DataError(f"data {path}: is in the split {split}, but no such file is there")
        image, label = _read(path, bands, renamed)
        if images and image.shape != images[0].shape:
            raise DataError(
                f"data {path}: expected {images[0].shape[0]} x {images[0].shape[1]} pixels like "
                f"{names[0]}, got {image.shape[0]} x {image.shape[1]}"
            )
        images.append(image)
        labels.append(label)
    return Samples(np.stack(images), np.array(labels, np.int32), tuple(names), tuple(bands))


def canonical(name: str) -> str:
    """The short name of a band: B8A of "08A - Vegetation Red Edge_2018-05-01", R of "Red"."""
    name = DATE.sub("", name)
    numbered = NUMBERED.match(name)
    return f"B{numbered[1]}{numbered[2]}" if numbered else COLORS.get(name, name)


def _names(path: Path, split: str) -> list[str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"data {path}: cannot be read as JSON ({first_line(error)})") from error
    names = content.get(split) if isinstance(content, dict) else None
    if not isinstance(names, list) or not all(isinstance(own, str) for own in names) or not names:
        known = ", ".join(own for own in SPLITS if own in content) if content else "none"
        raise DataError(f"data {path}: expected samples of the split {split}, got {known}")
    return names


def _read(path: Path, bands: Sequence[str], renamed: dict[str, str]) -> tuple[np.ndarray, Any]:
    h5py: Any = import_extra("h5py", "rl")
    try:
        with h5py.File(path, "r") as file:
            present = {canonical(name): name for name in file if not name.startswith(LABEL)}
            present = {renamed.get(own, own): name for own, name in present.items()}
            places_of(tuple(present), bands, f"data {path}")
            layers = [np.asarray(file[present[band]]) for band in bands]
            masks = [name for name in file if name.startswith(LABEL)]
            label: Any = np.asarray(file[masks[0]]) if masks else _class(file, path)
    except UserError:
        raise
    except Exception as error:  # h5py raises of everything: OSError, RuntimeError, KeyError, ...
        raise DataError(f"data {path}: cannot be read as HDF5 ({first_line(error)})") from error
    sizes = {layer.shape for layer in layers}
    if len(sizes) > 1 or layers[0].ndim != 2:
        raise DataError(f"data {path}: expected bands of one size, got {sorted(sizes)}")
    image = np.stack(layers, axis=-1)
    if not np.any(image):
        raise DataError(f"data {path}: expected a pixel with data, got zeros everywhere")
    return image, label


def _class(file: Any, path: Path) -> int:
    """The label in the pickled attribute, read as a list of operations that nothing executes."""
    try:
        written = ast.literal_eval(file.attrs["pickle"])
        values = _values(written)
        for value in values:
            if value == LABEL:
                label = next(values)
                if isinstance(label, int):
                    return label
                break
    except Exception as error:  # a missing attribute, text that is none, operations that are none
        raise DataError(f"data {path}: holds no label ({first_line(error)})") from error
    raise DataError(f"data {path}: expected one class as its label, got something else")


def _values(written: bytes) -> Iterator[Any]:
    """Texts and whole numbers of a pickle, in order; of anything else the operation's name."""
    passed = {"MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT", "FRAME", "PROTO", "MARK"}
    for operation, argument, _ in pickletools.genops(written):
        if operation.name in passed:
            continue
        known = isinstance(argument, str | int) and not isinstance(argument, bool)
        yield argument if known and "GET" not in operation.name else operation
