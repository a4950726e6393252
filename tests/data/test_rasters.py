"""Bands of GeoTIFFs, and what is refused by name."""

from __future__ import annotations

import builtins

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.data import rasters
from jaxmethods.errors import DataError, MissingExtraError
from jaxmethods.rsfm.evaluation import baselines


def test_without_rasterio_and_tifffile_the_extra_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def blocked(name, *arguments, **named):
        if name.split(".")[0] in ("rasterio", "tifffile"):
            raise ImportError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **named)

    for name in ("rasterio", "tifffile"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    monkeypatch.setattr(builtins, "__import__", blocked)
    (tmp_path / "a.tif").write_bytes(b"II*\0")
    with pytest.raises(MissingExtraError, match=r"pip install 'jaxmethods\[rs\]'"):
        rasters.read_bands({"B4": tmp_path / "a.tif"}, ("B4",))


@pytest.fixture
def stack(tmp_path):
    """Two bands of 10 m and one of 20 m with nodata, in UTM."""
    rasterio = pytest.importorskip("rasterio")
    rng = np.random.default_rng(0)
    found = {}
    for name, size in (("B4", 8), ("B8", 8), ("B11", 4)):
        values = rng.integers(1, 5000, (1, size, size)).astype(np.uint16)
        values[0, 0, 0] = 0
        found[name] = tmp_path / f"T33_{name}.tif"
        place = rasterio.transform.from_origin(500_000, 5_000_000, 80 / size, 80 / size)
        shape = {"width": size, "height": size, "count": 1, "dtype": "uint16"}
        with rasterio.open(
            found[name], "w", driver="GTiff", crs="EPSG:32633", transform=place, nodata=0, **shape
        ) as file:
            file.write(values)
    return found


def test_bands_come_by_name_on_the_finest_grid(stack):
    own = rasters.read_bands(stack, ("B11", "B4"))
    assert own.images.shape == (8, 8, 2)
    assert own.gsd == pytest.approx(10)
    assert not own.valid[:2, :2].any()  # one missing pixel of 20 m
    assert own.valid[2:, 2:].all()
    other = rasters.read_bands(stack, ("B4", "B11"))
    np.testing.assert_array_equal(own.images, other.images[..., ::-1])
    smooth = rasters.read_bands(stack, ("B11",), resample="bilinear")
    assert smooth.images.dtype == np.uint16
    with pytest.raises(DataError, match="expected a file of B2, got B4, B8, B11"):
        rasters.read_bands(stack, ("B2",))


def test_bands_shuffled_in_a_file_give_the_same_features(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    values = np.random.default_rng(0).integers(1, 99, (3, 6, 6)).astype(np.uint16)
    paths = []
    for number, order in enumerate(([0, 1, 2], [2, 0, 1])):
        paths.append(tmp_path / f"{number}.tif")
        shape = {"width": 6, "height": 6, "count": 3, "dtype": "uint16"}
        with rasterio.open(paths[-1], "w", driver="GTiff", **shape) as file:
            file.write(values[order])
    names = ("B8A", "B2")
    one = rasters.read_bands(paths[0], names, order=("B2", "B3", "B8A"))
    other = rasters.read_bands(paths[1], names, order=("B8A", "B2", "B3"))
    np.testing.assert_array_equal(one.images, other.images)
    assert one.band_names == other.band_names == names
    stats = [baselines.imagestats(jnp.asarray(own.images[None] / 99.0)) for own in (one, other)]
    np.testing.assert_array_equal(*stats)
    assert one.gsd is None
    with pytest.raises(DataError, match="expected the names of its 3 bands, got 2"):
        rasters.read_bands(paths[0], names, order=("B2", "B3"))


def test_degrees_are_meters_at_the_latitude(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    place = rasterio.transform.from_origin(10.0, 60.0 + 4 * 0.0001, 0.0001, 0.0001)
    shape = {"width": 8, "height": 8, "count": 1, "dtype": "uint16"}
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", crs="EPSG:4326", transform=place, **shape
    ) as file:
        file.write(np.ones((1, 8, 8), np.uint16))
    own = rasters.read_bands({"B4": tmp_path / "a.tif"}, ("B4",))
    assert own.gsd == pytest.approx(11.132 * np.sqrt(np.cos(np.radians(60))), rel=1e-3)


def test_a_truncated_file_is_named(stack):
    content = stack["B4"].read_bytes()
    stack["B4"].write_bytes(content[: len(content) // 3])
    with pytest.raises(DataError, match=r"T33_B4\.tif: cannot be read"):
        rasters.read_bands(stack, ("B4",))


def test_tifffile_reads_the_same_pixels(stack, monkeypatch):
    pytest.importorskip("tifffile")
    own = rasters.read_bands(stack, ("B4", "B8"))
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    other = rasters.read_bands(stack, ("B4", "B8"))
    np.testing.assert_array_equal(own.images, other.images)
    np.testing.assert_array_equal(own.valid, other.valid)
    assert other.gsd is None


def test_what_stands_for_missing_pixels_is_never_data(stack, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    folder = stack["B4"].parent
    values = np.full((4, 4), 5, np.float32)
    for name, mark, tag in (
        ("nan", np.nan, "nan"),
        ("silent", np.nan, None),
        ("far", -9999, "-9999"),
    ):
        coarse = values.copy()
        coarse[0, 0] = mark
        tags = [] if tag is None else [(42113, "s", 0, tag, True)]
        tifffile.imwrite(folder / f"{name}.tif", coarse, extratags=tags)
        tifffile.imwrite(folder / "fine.tif", np.ones((8, 8), np.float32))
        files = {"B11": folder / f"{name}.tif", "B4": folder / "fine.tif"}
        for resample in ("nearest", "bilinear"):
            for reader in ("rasterio", "tifffile"):
                with monkeypatch.context() as patch:
                    if reader == "tifffile":
                        patch.setitem(__import__("sys").modules, "rasterio", None)
                    own = rasters.read_bands(files, ("B11", "B4"), resample=resample)
                np.testing.assert_array_equal(
                    np.argwhere(~own.valid), [[0, 0], [0, 1], [1, 0], [1, 1]]
                )
                np.testing.assert_array_equal(own.images[..., 0], np.where(own.valid, 5, 0))


def test_a_scale_and_an_offset_of_a_file_are_in_its_pixels(stack, monkeypatch):
    """As reflectance of Sentinel-2 is distributed, 0.0001 x - 0.1, beside a band without a word."""
    rasterio = pytest.importorskip("rasterio")
    plain = rasters.read_bands(stack, ("B11", "B4"))
    with rasterio.open(stack["B11"], "r+") as file:
        file.scales, file.offsets = (1e-4,), (-0.1,)
    own = rasters.read_bands(stack, ("B11", "B4"))
    assert own.images.dtype == np.float32
    expected = np.where(plain.valid, 1e-4 * plain.images[..., 0] - 0.1, 0)
    np.testing.assert_allclose(own.images[..., 0], expected, atol=1e-6)
    np.testing.assert_array_equal(own.images[..., 1], plain.images[..., 1])
    np.testing.assert_array_equal(own.valid, plain.valid)
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    other = rasters.read_bands(stack, ("B11", "B4"))
    np.testing.assert_array_equal(other.images, own.images)
    np.testing.assert_array_equal(other.valid, own.valid)


def test_zeros_of_all_bands_are_no_data_whatever_they_stand_for(stack):
    rasterio = pytest.importorskip("rasterio")
    for name in ("B4", "B8"):
        with rasterio.open(stack[name], "r+") as file:
            file.nodata, file.offsets = None, (-0.1,)
    assert not rasters.read_bands(stack, ("B4", "B8")).valid[0, 0]


def test_bands_of_another_place_are_refused(stack):
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(stack["B8"], "r+") as file:
        file.transform = rasterio.transform.from_origin(500_080, 5_000_000, 10, 10)
    with pytest.raises(DataError, match=r"T33_B8.tif: expected the place of .*T33_B4.tif"):
        rasters.read_bands(stack, ("B4", "B8"))


def test_enlarged_bands_keep_the_type_of_their_file(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    for name, size in (("B4", 4), ("B11", 2)):
        tifffile.imwrite(tmp_path / f"{name}.tif", np.full((size, size), 0.5, np.float32))
    files = {name: tmp_path / f"{name}.tif" for name in ("B4", "B11")}
    own = rasters.read_bands(files, ("B4", "B11"), resample="bilinear")
    assert own.images.dtype == np.float32


def test_an_infinite_pixel_was_never_seen(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    values = np.ones((3, 3), np.float32)
    values[0, 0], values[1, 1] = np.inf, -np.inf
    tifffile.imwrite(tmp_path / "a.tif", values)
    own = rasters.read_bands({"B4": tmp_path / "a.tif"}, ("B4",))
    assert own.valid.sum() == 7
    assert np.isfinite(own.images).all()


@pytest.mark.parametrize("reader", ["rasterio", "tifffile"])
def test_zero_is_a_number_in_a_file_that_says_what_is_missing(tmp_path, monkeypatch, reader):
    rasterio = pytest.importorskip("rasterio")
    if reader == "tifffile":
        pytest.importorskip("tifffile")
    heights = np.array([[[0, -3], [-9999, 0]]], np.int16)  # of land at the sea
    path = tmp_path / "heights.tif"
    shape = {"width": 2, "height": 2, "count": 1, "dtype": "int16"}
    with rasterio.open(path, "w", driver="GTiff", nodata=-9999, **shape) as file:
        file.write(heights)
    if reader == "tifffile":
        monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    own = rasters.read_bands({"H": path}, ("H",))
    np.testing.assert_array_equal(own.valid, heights[0] != -9999)
