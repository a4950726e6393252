"""Remote-sensing images as users have them: folders of classes, zips, split files, GeoTIFF stacks.

    data = read_classes("EuroSAT.zip")                      # a folder for each class, splits.csv
    data.split("train").images                              # [N, H, W, C]

    stack = read_bands({"B4": "T33_B04.tif", "B11": "T33_B11.tif"}, ("B4", "B11"))
    stack.images, stack.valid, stack.gsd                    # [H, W, C], [H, W], meters

EuroSAT, UCM, RESISC45 and AID are folders `CLASS/*.jpg|png|tif`, at any depth below the root.
Pictures of three bytes are read by Pillow; all other TIFFs by rasterio, or by tifffile, which knows
neither where a pixel is nor how large. Zips are read where they are, never unpacked, and a member
whose path leads outside is refused. Whatever is wrong is one line that names the file.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from jaxmethods.data.image_folders import FORMATS, SUFFIXES
from jaxmethods.errors import DataError, MissingExtraError, UserError, first_line, import_extra

METERS_PER_DEGREE = 111_320.0
"""The length of a degree of latitude; one of longitude has its cosine times as much."""
SPLIT_FILE = "splits.csv"
Resample = Literal["nearest", "bilinear"]


class Classified(NamedTuple):
    """Images with one label each."""

    images: np.ndarray
    """[N, H, W, C] uint8."""
    labels: np.ndarray
    """[N] int32"""
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    """Paths below the root."""
    splits: tuple[str, ...]
    """The split of every image; "" where none is given."""
    hashes: tuple[str, ...]
    """SHA-256 of every file."""

    def split(self, name: str) -> Classified:
        """The images of one split. Raises `DataError` where it has none, or lacks a class."""
        rows = [place for place, own in enumerate(self.splits) if own == name]
        if not rows:
            known = ", ".join(sorted(set(self.splits) - {""})) or "none"
            raise DataError(f"split: expected one of {known}, got {name!r}")
        chosen = self.rows(rows)
        absent = np.setdiff1d(np.arange(len(self.class_names)), chosen.labels)
        if len(absent):
            raise DataError(
                f"split {name}: expected images of all {len(self.class_names)} classes, got none "
                f"of {self.class_names[absent[0]]}"
            )
        return chosen

    def rows(self, places: Sequence[int] | np.ndarray) -> Classified:
        """Some of the images, in this order."""
        own = [int(place) for place in places]
        return self._replace(
            images=self.images[own],
            labels=self.labels[own],
            names=tuple(self.names[place] for place in own),
            splits=tuple(self.splits[place] for place in own),
            hashes=tuple(self.hashes[place] for place in own),
        )


class Stack(NamedTuple):
    """Bands of one place on one grid."""

    images: np.ndarray
    """[H, W, C] of the type of the files; 0 where a band is missing, whatever a file has there."""
    valid: np.ndarray
    """[H, W] bool: no band is missing or NaN there, and not all of them are 0."""
    band_names: tuple[str, ...]
    gsd: float | None
    """Meters of a pixel; None where no file says."""


def read_classes(
    root: Path | str, splits: Path | str | Mapping[str, Path] | None = None
) -> Classified:
    """Reads images in folders of their class, from a folder or a zip.

    Args:
        root: the folder, or a zip of it.
        splits: a CSV with the columns `path` and `split`; or a split's name to a text file of one
            path a line. None: `splits.csv` of the root, where there is one.

    Returns:
        All images, in the order of their paths; those of a split file that has not all are left
        out.

    Raises:
        DataError: names the file, and says what is wrong with it.
    """
    root = Path(root)
    members = list_members(root)
    given = _split_names(root, members, splits)
    files = [name for name in sorted(members) if name.lower().endswith(SUFFIXES)]
    if not files:
        raise DataError(f"data {root}: holds no image ({', '.join(SUFFIXES)})")
    if given is not None:
        unknown = sorted(set(given) - set(files))
        if unknown:
            raise DataError(f"data {root}: {unknown[0]}: is in a split, but no such image is there")
        files = [name for name in files if name in given]
    classes = tuple(sorted({PurePosixPath(name).parent.name for name in files}))
    images, hashes = [], []
    for name in files:
        content = members[name].read()
        hashes.append(hashlib.sha256(content).hexdigest())
        image = read_picture(content, f"{root}: {name}")
        if images and image.shape != images[0].shape:
            raise DataError(
                f"data {root}: {name}: expected {images[0].shape[0]} x {images[0].shape[1]} pixels "
                f"like {files[0]}, got {image.shape[0]} x {image.shape[1]}"
            )
        images.append(image)
    labels = [classes.index(PurePosixPath(name).parent.name) for name in files]
    own = tuple("" if given is None else given[name] for name in files)
    return Classified(
        np.stack(images), np.array(labels, np.int32), classes, tuple(files), own, tuple(hashes)
    )


def refuse_shared_images(first: Classified, second: Classified) -> None:
    """Refuses splits that share an image, whatever its name.

    Raises:
        DataError: names both files.
    """
    known = dict(zip(first.hashes, first.names, strict=True))
    for own, name in zip(second.hashes, second.names, strict=True):
        if own in known:
            raise DataError(f"data: {name} is the same image as {known[own]} of the other split")


def read_bands(
    files: Mapping[str, Path | str] | Path | str,
    names: Sequence[str],
    *,
    order: Sequence[str] | None = None,
    resample: Resample = "nearest",
) -> Stack:
    """Reads bands from GeoTIFFs onto the grid of the finest one.

    Args:
        files: a band's name to a file of it; or one file of several bands, with `order`.
        names: which bands, in which order.
        order: names of the bands of one file, in its order.
        resample: how coarser bands are enlarged.

    Returns:
        The bands, which pixels have data, and the size of a pixel.

    Raises:
        DataError: a band that isn't there, another number of bands than names, files of different
            places, a file that cannot be read, or no pixel with data.
        MissingExtraError: neither rasterio nor tifffile is installed.
    """
    if isinstance(files, Mapping):
        missing = [name for name in names if name not in files]
        if missing:
            raise DataError(f"bands: expected a file of {missing[0]}, got {', '.join(files)}")
        read = {name: _read_tiff(Path(files[name])) for name in names}
        for name, one in read.items():
            if one.bands.shape[-1] != 1:
                raise DataError(f"data {files[name]}: expected one band, got {one.bands.shape[-1]}")
        _refuse_other_places(read, files)
        layers = [read[name].bands[..., 0] for name in names]
        seen = [read[name].valid[..., 0] for name in names]
        sizes = [read[name].gsd for name in names]
    else:
        layers, seen, sizes = _bands_of_one(Path(files), names, order)
    height = max(layer.shape[0] for layer in layers)
    width = max(layer.shape[1] for layer in layers)
    grown = [
        _enlarged(np.where(own, layer, layer.dtype.type(0)), own, (height, width), resample)
        for layer, own in zip(layers, seen, strict=True)
    ]
    valid = [_nearest(own, (height, width)) for own in seen]
    images = np.stack(grown, axis=-1)
    known = [own for own in sizes if own is not None]
    there = np.all(valid, axis=0) & np.any(images != 0, axis=-1)
    if not there.any():
        source = (
            ", ".join(str(files[name]) for name in names) if isinstance(files, Mapping) else files
        )
        raise DataError(f"data {source}: expected a pixel with data, got nodata everywhere")
    return Stack(images, there, tuple(names), min(known) if known else None)


class _Tiff(NamedTuple):
    bands: np.ndarray
    valid: np.ndarray
    gsd: float | None
    place: tuple[str, tuple[float, ...]] | None
    """Coordinate system, and left, bottom, right and top in it; None where the file doesn't say."""


def _refuse_other_places(read: Mapping[str, _Tiff], files: Mapping[str, Path | str]) -> None:
    """Refuses bands whose edges are a pixel of the coarsest or more apart."""
    first, *others = [name for name, one in read.items() if one.place is not None] or [""]
    for name in others:
        here, there = read[first].place, read[name].place
        assert here is not None
        assert there is not None
        (system, edges), (own_system, own_edges) = here, there
        pixels = [(edges[2] - edges[0]) / read[one].bands.shape[1] for one in (first, name)]
        apart = max(abs(a - b) for a, b in zip(edges, own_edges, strict=True))
        if system != own_system or apart >= max(pixels):
            raise DataError(
                f"data {files[name]}: expected the place of {files[first]} ({system} "
                f"{_in_words(edges)}), got {own_system} {_in_words(own_edges)}"
            )


def _in_words(edges: tuple[float, ...]) -> str:
    return ", ".join(f"{edge:.10g}" for edge in edges)


def _bands_of_one(
    path: Path, names: Sequence[str], order: Sequence[str] | None
) -> tuple[list[np.ndarray], list[np.ndarray], list[float | None]]:
    read = _read_tiff(path)
    number = read.bands.shape[-1]
    if order is None or len(order) != number:
        said = "none" if order is None else f"{len(order)} ({', '.join(order)})"
        raise DataError(f"data {path}: expected the names of its {number} bands, got {said}")
    missing = [name for name in names if name not in order]
    if missing:
        raise DataError(f"data {path}: expected band {missing[0]}, got {', '.join(order)}")
    places = [list(order).index(name) for name in names]
    layers = [read.bands[..., place] for place in places]
    return layers, [read.valid[..., place] for place in places], [read.gsd]


def _read_tiff(path: Path) -> _Tiff:
    if not path.is_file():
        raise DataError(f"data {path}: no such file")
    try:
        rasterio = import_extra("rasterio", "rs")
    except MissingExtraError:
        return _read_with_tifffile(path)
    try:
        with rasterio.open(path) as file:
            bands = np.moveaxis(file.read(), 0, -1)
            valid = np.moveaxis(file.read_masks(), 0, -1) > 0
            return _Tiff(bands, valid & _is_number(bands), _pixel_size(file), _place(file))
    except UserError:
        raise
    except Exception as error:  # GDAL's errors are of many kinds
        raise DataError(f"data {path}: cannot be read as a raster ({first_line(error)})") from error


def _read_with_tifffile(path: Path) -> _Tiff:
    tifffile = import_extra("tifffile", "rs")
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            bands = file.asarray()
            nodata = page.tags.get("GDAL_NODATA")
            missing = None if nodata is None else float(str(nodata.value).strip("\x00 "))
    except UserError:
        raise
    except Exception as error:  # tifffile raises of everything
        raise DataError(f"data {path}: cannot be read as a TIFF ({first_line(error)})") from error
    if bands.ndim == 2:
        bands = bands[..., None]
    elif bands.ndim == 3 and bands.shape[0] < min(bands.shape[1:]):
        bands = np.moveaxis(bands, 0, -1)
    if bands.ndim != 3:
        raise DataError(f"data {path}: expected one image of bands, got {bands.shape}")
    valid = np.ones(bands.shape, bool) if missing is None else bands != missing
    return _Tiff(bands, valid & _is_number(bands), None, None)


def _is_number(bands: np.ndarray) -> np.ndarray:
    """[H, W, C] bool. Whatever a file says of missing pixels, NaN is none that was seen."""
    return ~np.isnan(bands) if bands.dtype.kind == "f" else np.ones(bands.shape, bool)


def _place(file: Any) -> tuple[str, tuple[float, ...]] | None:
    if file.crs is None or file.transform.is_identity:
        return None
    return file.crs.to_string(), tuple(file.bounds)


def _pixel_size(file: Any) -> float | None:
    """Meters, from the affine map; degrees are converted at the middle latitude."""
    if file.crs is None or file.transform.is_identity:
        return None
    width, height = (
        math.hypot(file.transform.a, file.transform.d),
        math.hypot(file.transform.b, file.transform.e),
    )
    if file.crs.is_geographic:
        middle = (file.bounds.top + file.bounds.bottom) / 2
        width *= METERS_PER_DEGREE * math.cos(math.radians(middle))
        height *= METERS_PER_DEGREE
    else:
        factor = file.crs.linear_units_factor[1]
        width, height = width * factor, height * factor
    return math.sqrt(width * height)


def _enlarged(
    layer: np.ndarray, seen: np.ndarray, size: tuple[int, int], resample: Resample
) -> np.ndarray:
    """A layer that is 0 where nothing was seen; between pixels, means of those that were."""
    if layer.shape == size:
        return layer
    if resample == "nearest":
        return _nearest(layer, size)
    maps = [_bilinear(before, after) for before, after in zip(layer.shape, size, strict=True)]
    shares = maps[0] @ seen.astype(np.float64) @ maps[1].T
    grown = maps[0] @ layer.astype(np.float64) @ maps[1].T / np.where(shares > 0, shares, 1)
    grown = np.where(_nearest(seen, size), grown, 0)
    return np.round(grown).astype(layer.dtype) if layer.dtype.kind in "iu" else grown


def _nearest(layer: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows = np.arange(size[0]) * layer.shape[0] // size[0]
    columns = np.arange(size[1]) * layer.shape[1] // size[1]
    return layer[rows][:, columns]


def _bilinear(before: int, after: int) -> np.ndarray:
    centers = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
    return np.maximum(1 - np.abs(centers[:, None] - np.arange(before)), 0)


class Member(NamedTuple):
    """A file of a folder or of a zip."""

    root: Path
    name: str
    zipped: bool

    def read(self) -> bytes:
        """Its content. Raises `DataError` where it is damaged."""
        try:
            if not self.zipped:
                return (self.root / self.name).read_bytes()
            with zipfile.ZipFile(self.root) as archive:
                return archive.read(self.name)
        except Exception as error:  # damaged members raise zlib.error, BadZipFile, ...
            raise DataError(
                f"data {self.root}: {self.name}: cannot be read ({first_line(error)})"
            ) from error


def list_members(root: Path) -> dict[str, Member]:
    """Path below the root -> file, of a folder or of a zip.

    Raises:
        DataError: neither of them, or a zip with a path that leads outside.
    """
    if root.is_dir():
        files = [path for path in sorted(root.rglob("*")) if path.is_file()]
        names = [path.relative_to(root).as_posix() for path in files]
        return {name: Member(root, name, False) for name in names}
    if not root.is_file():
        raise DataError(f"data {root}: no such folder or zip")
    try:
        with zipfile.ZipFile(root) as archive:
            names = [own.filename for own in archive.infolist() if not own.is_dir()]
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"data {root}: is no folder and no zip ({first_line(error)})") from error
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
            raise DataError(f"data {root}: {name}: is a path outside of the zip")
    return {name: Member(root, name, True) for name in names}


def _split_names(
    root: Path, members: Mapping[str, Member], splits: Path | str | Mapping[str, Path] | None
) -> dict[str, str] | None:
    """The split of every path; None where nothing says."""
    if isinstance(splits, Mapping):
        found: dict[str, str] = {}
        for split, path in splits.items():
            for line in _text(Path(path)).split():
                name = _full_name(line, members)
                if found.setdefault(name, split) != split:
                    raise DataError(
                        f"data {path}: {line} is in the splits {found[name]} and {split}"
                    )
        return found
    if splits is None and SPLIT_FILE not in members:
        return None
    if splits is None:
        text, source = (
            members[SPLIT_FILE].read().decode("utf-8", "replace"),
            f"{root}: {SPLIT_FILE}",
        )
    else:
        text, source = _text(Path(splits)), str(splits)
    rows = list(csv.DictReader(io.StringIO(text)))
    if not rows or not {"path", "split"} <= set(rows[0]):
        raise DataError(f"data {source}: expected the columns path and split")
    return {_full_name(row["path"], members): row["split"] for row in rows}


def _full_name(line: str, members: Mapping[str, Member]) -> str:
    """A path of a split file as it stands below the root, which may have a folder around all."""
    if line in members:
        return line
    ends = [name for name in members if name.endswith(f"/{line}")]
    return ends[0] if len(ends) == 1 else line


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data {path}: cannot be read ({first_line(error)})") from error


def read_picture(content: bytes, source: str) -> np.ndarray:
    """A picture of bytes as [H, W, 3] uint8. Raises `DataError` where it is none."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.mode[0] in "IF":  # conversion would cut values off at 255
                raise ValueError(f"expected 8 bits a channel, got mode {image.mode}")
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # decoders raise of everything: SyntaxError, struct.error, ...
        raise DataError(
            f"data {source}: cannot be read as an image ({first_line(error)})"
        ) from error
