"""GeoTIFFs as users have them: bands of one place, by name, on one grid.

    stack = read_bands({"B4": "T33_B04.tif", "B11": "T33_B11.tif"}, ("B4", "B11"))
    stack.images, stack.valid, stack.gsd                    # [H, W, C], [H, W], meters

Files are read by rasterio, or by tifffile, which knows neither where a pixel is nor how large. A
file that says what its numbers stand for (GDAL's scale and offset) is read as scale x + offset.
Whatever is wrong is one line that names the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxmethods.errors import DataError, MissingExtraError, UserError, first_line, import_extra

METERS_PER_DEGREE = 111_320.0
"""The length of a degree of latitude; one of longitude has its cosine times as much."""
ITEM = re.compile(r"<Item ([^>]*)>([^<]*)</Item>")
SAMPLE = re.compile(r'sample="(\d+)"')
Resample = Literal["nearest", "bilinear"]


class Stack(NamedTuple):
    """Bands of one place on one grid."""

    images: np.ndarray
    """[H, W, C] of the type of the files, or float32 where one has a scale or an offset; 0 where a
    band is missing, whatever a file has there."""
    valid: np.ndarray
    """[H, W] bool: no band is missing, NaN or infinite there, and not all of them are 0 in files
    that don't say what is missing."""
    band_names: tuple[str, ...]
    gsd: float | None
    """Meters of a pixel; None where no file says."""


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
        zeros = [read[name].zeros[0] for name in names]
    else:
        layers, seen, sizes, zeros = _bands_of_one(Path(files), names, order)
    height = max(layer.shape[0] for layer in layers)
    width = max(layer.shape[1] for layer in layers)
    grown = [
        _enlarged(np.where(own, layer, layer.dtype.type(0)), own, (height, width), resample)
        for layer, own in zip(layers, seen, strict=True)
    ]
    valid = [_nearest(own, (height, width)) for own in seen]
    images = np.stack(grown, axis=-1)
    known = [own for own in sizes if own is not None]
    nothing = [
        zero is not None and images[..., place] == images.dtype.type(zero)
        for place, zero in enumerate(zeros)
    ]
    there = np.all(valid, axis=0) & ~reduce(np.logical_and, nothing)
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
    zeros: Sequence[float | None]
    """What 0 stands for in each band; None where the file says what is missing: 0 is a number."""


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
) -> tuple[list[np.ndarray], list[np.ndarray], list[float | None], list[float | None]]:
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
    seen = [read.valid[..., place] for place in places]
    return layers, seen, [read.gsd], [read.zeros[place] for place in places]


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
            valid = (np.moveaxis(file.read_masks(), 0, -1) > 0) & _is_number(bands)
            bands = _scaled(bands, file.scales, file.offsets)
            whole = rasterio.enums.MaskFlags.all_valid
            pairs = zip(file.mask_flag_enums, file.offsets, strict=True)
            zeros = [offset if whole in flags else None for flags, offset in pairs]
            return _Tiff(bands, valid, _pixel_size(file), _place(file), zeros)
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
            said = page.tags.get("GDAL_METADATA")
            said = "" if said is None else str(said.value)
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
    number = bands.shape[-1]
    scales, offsets = _said(said, "scale", number, 1.0), _said(said, "offset", number, 0.0)
    valid = valid & _is_number(bands)
    zeros = offsets if missing is None else [None] * number
    return _Tiff(_scaled(bands, scales, offsets), valid, None, None, zeros)


def _said(text: str, role: str, bands: int, usual: float) -> list[float]:
    """What GDAL's metadata say of every band."""
    found = [usual] * bands
    for attributes, value in ITEM.findall(text):
        place = SAMPLE.search(attributes)
        if f'role="{role}"' in attributes and place is not None and int(place[1]) < bands:
            found[int(place[1])] = float(value)
    return found


def _scaled(bands: np.ndarray, scales: Sequence[float], offsets: Sequence[float]) -> np.ndarray:
    """What the numbers of a file [H, W, C] stand for: as they are, or float32."""
    scale, offset = np.asarray(scales, float), np.asarray(offsets, float)
    if np.all(scale == 1) and np.all(offset == 0):
        return bands
    return (bands * scale + offset).astype(np.float32)


def _is_number(bands: np.ndarray) -> np.ndarray:
    """[H, W, C] bool. Whatever a file says of missing pixels, NaN and infinity were never seen."""
    return np.isfinite(bands)


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
    whole = np.round(grown) if layer.dtype.kind in "iu" else grown
    return whole.astype(layer.dtype)


def _nearest(layer: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows = np.arange(size[0]) * layer.shape[0] // size[0]
    columns = np.arange(size[1]) * layer.shape[1] // size[1]
    return layer[rows][:, columns]


def _bilinear(before: int, after: int) -> np.ndarray:
    centers = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
    return np.maximum(1 - np.abs(centers[:, None] - np.arange(before)), 0)
