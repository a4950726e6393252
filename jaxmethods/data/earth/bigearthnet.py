"""BigEarthNet's patches as they are distributed: a folder for each, a GeoTIFF for each band.

    v1    PATCH/PATCH_B02.tif, ..., PATCH/PATCH_labels_metadata.json       {"labels": [43 classes]}
    v2    TILE/PATCH/PATCH_B02.tif, ..., and one table with patch_id, labels [19 classes], split

The 43 CORINE classes of v1 become the 19 of Sumbul et al. 2021 (arXiv 2105.07921); eleven of them
have no place among those, and a patch that has no other is left out, as the authors leave it out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmethods.data.rasters import Resample, read_bands
from jaxmethods.errors import DataError, UserError, first_line, import_extra

MERGED: dict[str, tuple[str, ...]] = {
    "Urban fabric": ("Continuous urban fabric", "Discontinuous urban fabric"),
    "Industrial or commercial units": (),
    "Arable land": (
        "Non-irrigated arable land",
        "Permanently irrigated land",
        "Rice fields",
    ),
    "Permanent crops": (
        "Vineyards",
        "Fruit trees and berry plantations",
        "Olive groves",
        "Annual crops associated with permanent crops",
    ),
    "Pastures": (),
    "Complex cultivation patterns": (),
    "Land principally occupied by agriculture, with significant areas of natural vegetation": (),
    "Agro-forestry areas": (),
    "Broad-leaved forest": (),
    "Coniferous forest": (),
    "Mixed forest": (),
    "Natural grassland and sparsely vegetated areas": (
        "Natural grassland",
        "Sparsely vegetated areas",
    ),
    "Moors, heathland and sclerophyllous vegetation": (
        "Moors and heathland",
        "Sclerophyllous vegetation",
    ),
    "Transitional woodland, shrub": ("Transitional woodland/shrub",),
    "Beaches, dunes, sands": (),
    "Inland wetlands": ("Inland marshes", "Peatbogs"),
    "Coastal wetlands": ("Salt marshes", "Salines"),
    "Inland waters": ("Water courses", "Water bodies"),
    "Marine waters": ("Coastal lagoons", "Estuaries", "Sea and ocean"),
}
"""The 19 classes, and those of v1 that became each of them; none: it kept its name."""
CLASSES = tuple(MERGED)
DROPPED = frozenset(
    {
        "Airports",
        "Bare rock",
        "Burnt areas",
        "Construction sites",
        "Dump sites",
        "Green urban areas",
        "Intertidal flats",
        "Mineral extraction sites",
        "Port areas",
        "Road and rail networks and associated land",
        "Sport and leisure facilities",
    }
)
"""Classes of v1 without a place among the 19."""
PLACES = {old: place for place, (new, olds) in enumerate(MERGED.items()) for old in (new, *olds)}
BANDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12")
"""Level 2A has no B10."""
FINE, COARSE = ("B2", "B3", "B4", "B8"), ("B1", "B9")
"""Bands of 10 m and of 60 m; the others are of 20 m."""


class Patches(NamedTuple):
    """Patches with several labels each."""

    images: np.ndarray
    """[N, H, W, C] uint16, on the grid of the finest band."""
    valid: np.ndarray
    """[N, H, W] bool"""
    labels: np.ndarray
    """[N, 19] bool, in the order of `CLASSES`."""
    names: tuple[str, ...]
    splits: tuple[str, ...]
    """The split of every patch; "" where none is given."""
    band_names: tuple[str, ...]
    gsd: float
    """Meters of a pixel."""

    def split(self, name: str) -> Patches:
        """The patches of one split. Raises `DataError` where it has none."""
        rows = [place for place, own in enumerate(self.splits) if own == name]
        if not rows:
            known = ", ".join(sorted(set(self.splits) - {""})) or "none"
            raise DataError(f"split: expected one of {known}, got {name!r}")
        return self._replace(
            images=self.images[rows],
            valid=self.valid[rows],
            labels=self.labels[rows],
            names=tuple(self.names[place] for place in rows),
            splits=tuple(self.splits[place] for place in rows),
        )


def read_bigearthnet(
    root: Path | str,
    bands: Sequence[str] = BANDS,
    *,
    metadata: Path | str | None = None,
    splits: Mapping[str, Path | str] | None = None,
    resample: Resample = "nearest",
) -> Patches:
    """Reads patches of v1, or with a table of v2. All of them are held in memory.

    Args:
        root: holds the folders of the patches, at any depth.
        bands: which, in this order.
        metadata: v2's `metadata.parquet`; None: every patch has its own JSON file, as in v1.
        splits: a split's name to a text file of one patch a line; only those are read. None: all
            patches, with the splits of the table.
        resample: how bands of 20 and 60 m are enlarged.

    Returns:
        The patches, in the order of their names.

    Raises:
        DataError: names the file or patch, and says what is wrong with it.
        MissingExtraError: pyarrow, rasterio or tifffile is needed and not installed.
    """
    root = Path(root)
    folders = _folders(root)
    table = None if metadata is None else _read_table(Path(metadata))
    wanted = _wanted(folders, table, splits, root)
    kept: list[tuple[str, str, Any, np.ndarray]] = []
    for name, split in wanted.items():
        own = _labels_of(folders[name], name) if table is None else table[name][0]
        row = _row(own, name)
        if not row.any():
            continue
        stack = read_bands(_files(folders[name], name, bands), bands, resample=resample)
        first = kept[0][2].images.shape if kept else stack.images.shape
        if stack.images.shape != first:
            raise DataError(
                f"data {folders[name]}: expected {first[0]} x {first[1]} pixels like {kept[0][0]}, "
                f"got {stack.images.shape[0]} x {stack.images.shape[1]}"
            )
        kept.append((name, split, stack, row))
    if not kept:
        raise DataError(f"data {root}: expected a patch of one of the 19 classes, got none")
    names, given, stacks, rows = zip(*kept, strict=True)
    return Patches(
        np.stack([own.images for own in stacks]),
        np.stack([own.valid for own in stacks]),
        np.stack(rows),
        names,
        given,
        tuple(bands),
        stacks[0].gsd or min(map(_meters, bands)),
    )


def _meters(band: str) -> float:
    """Meters of a pixel of a band, for files read without what they say of it (tifffile)."""
    return 10.0 if band in FINE else 60.0 if band in COARSE else 20.0


def _folders(root: Path) -> dict[str, Path]:
    """Patch -> folder: those that hold a TIFF named after them."""
    if not root.is_dir():
        raise DataError(f"data {root}: no such folder")
    found = {
        path.parent.name: path.parent
        for path in sorted(root.rglob("*_B02.tif"))
        if path.name == f"{path.parent.name}_B02.tif"
    }
    if not found:
        raise DataError(f"data {root}: holds no patch (a folder PATCH with PATCH_B02.tif)")
    return found


def _files(folder: Path, name: str, bands: Sequence[str]) -> dict[str, Path]:
    """Band -> file. Raises `DataError` for one that is no band of the sensor or has no file."""
    unknown = [band for band in bands if band not in BANDS]
    if unknown:
        raise DataError(f"bands: expected some of {', '.join(BANDS)}, got {unknown[0]}")
    digits = {band: band if band == "B8A" else f"B{int(band[1:]):02d}" for band in bands}
    return {band: folder / f"{name}_{code}.tif" for band, code in digits.items()}


def _wanted(
    folders: Mapping[str, Path],
    table: Mapping[str, tuple[list[str], str]] | None,
    splits: Mapping[str, Path | str] | None,
    root: Path,
) -> dict[str, str]:
    """Patch -> split, in the order of the names."""
    if splits is None:
        known = {name: "" if table is None else table[name][1] for name in table or folders}
        found = {name: known[name] for name in sorted(folders) if name in known}
        if not found:
            raise DataError(f"data {root}: none of its patches is in the table")
        return found
    given: dict[str, str] = {}
    for split, path in splits.items():
        for line in _lines(Path(path)):
            if line not in folders or (table is not None and line not in table):
                where = "folder" if line not in folders else "row of the table"
                raise DataError(f"data {path}: {line}: there is no {where} of this patch")
            if given.setdefault(line, split) != split:
                raise DataError(f"data {path}: {line} is in the splits {given[line]} and {split}")
    return dict(sorted(given.items()))


def _lines(path: Path) -> Iterable[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data {path}: cannot be read ({first_line(error)})") from error


def _labels_of(folder: Path, name: str) -> list[str]:
    """The 43-class labels of a patch of v1."""
    path = folder / f"{name}_labels_metadata.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"data {path}: cannot be read as JSON ({first_line(error)})") from error
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, list) or not all(isinstance(own, str) for own in labels):
        raise DataError(f"data {path}: labels: expected a list of classes, got {type(labels)}")
    return labels


def _read_table(path: Path) -> dict[str, tuple[list[str], str]]:
    """Patch -> labels and split, of v2's table."""
    parquet = import_extra("pyarrow.parquet", "rs")
    try:
        columns = parquet.read_table(path, columns=["patch_id", "labels", "split"]).to_pydict()
        rows = zip(columns["patch_id"], columns["labels"], columns["split"], strict=True)
        return {str(name): (list(labels), str(split)) for name, labels, split in rows}
    except UserError:
        raise
    except Exception as error:  # pyarrow raises of many kinds
        raise DataError(f"data {path}: cannot be read as a table ({first_line(error)})") from error


def _row(labels: Iterable[str], name: str) -> np.ndarray:
    """[19] bool. Raises `DataError` for a label that is no class."""
    row = np.zeros(len(CLASSES), bool)
    for label in labels:
        if label in PLACES:
            row[PLACES[label]] = True
        elif label not in DROPPED:
            raise DataError(f"data {name}: labels: expected classes of BigEarthNet, got {label!r}")
    return row
