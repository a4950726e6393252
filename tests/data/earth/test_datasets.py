"""Readers of published layouts, and what they refuse in one line."""

from __future__ import annotations

import json
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from jaxmethods.data.earth import bigearthnet, captions, geobench, normalization
from jaxmethods.data.earth.sensors import EUROSAT_MS, FMOW_SENTINEL, SENTINEL2
from jaxmethods.errors import DataError, MissingExtraError

SIZES = {"B02": 12, "B04": 12, "B11": 6}


@pytest.fixture
def patches(tmp_path):
    """Three patches of v1: two that have classes, and one whose classes were dropped."""
    rasterio = pytest.importorskip("rasterio")
    labels = [
        ["Salt marshes", "Sea and ocean", "Airports"],
        ["Vineyards", "Olive groves"],
        ["Burnt areas"],
    ]
    for number, own in enumerate(labels):
        name = f"S2A_{number}"
        folder = tmp_path / "root" / "T33" / name
        folder.mkdir(parents=True)
        for code, size in SIZES.items():
            place = rasterio.transform.from_origin(500_000, 5_000_000, 120 / size, 120 / size)
            shape = {"width": size, "height": size, "count": 1, "dtype": "uint16", "nodata": 0}
            path = folder / f"{name}_{code}.tif"
            with rasterio.open(
                path, "w", driver="GTiff", crs="EPSG:32633", transform=place, **shape
            ) as file:
                file.write(np.full((1, size, size), 100 * number + int(code[1:]), np.uint16))
        (folder / f"{name}_labels_metadata.json").write_text(json.dumps({"labels": own}))
    return tmp_path / "root"


def refused(message, call, *arguments, **named):
    """The error is one line."""
    with pytest.raises(DataError, match=message) as error:
        call(*arguments, **named)
    assert "\n" not in str(error.value)


def test_patches_have_merged_classes_and_bands_by_name(patches):
    own = bigearthnet.read_bigearthnet(patches, ("B11", "B4"))
    assert own.names == ("S2A_0", "S2A_1")
    found = [[bigearthnet.CLASSES[place] for place in np.flatnonzero(row)] for row in own.labels]
    assert found == [["Coastal wetlands", "Marine waters"], ["Permanent crops"]]
    assert own.images.shape == (2, 12, 12, 2)
    np.testing.assert_array_equal(own.images[1, 3, 3], [111, 104])
    assert own.gsd == pytest.approx(10)
    assert len(bigearthnet.CLASSES) == 19
    old = {name for new, olds in bigearthnet.MERGED.items() for name in olds or (new,)}
    assert len(old | bigearthnet.DROPPED) == 43


def test_pixels_have_the_size_of_their_band_where_no_file_is_asked(patches, monkeypatch):
    pytest.importorskip("tifffile")
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    for bands, meters in ((("B11",), 20), (("B11", "B2"), 10)):
        assert bigearthnet.read_bigearthnet(patches, bands).gsd == meters


def test_split_files_name_the_patches(patches, tmp_path):
    files = {"train": tmp_path / "train.txt", "test": tmp_path / "test.txt"}
    files["train"].write_text("S2A_1\n", encoding="utf-8-sig")  # as spreadsheets write it
    files["test"].write_text("S2A_0\n")
    own = bigearthnet.read_bigearthnet(patches, ("B2",), splits=files)
    assert own.split("train").names == ("S2A_1",)
    files["test"].write_text("S2A_9\n")
    read = bigearthnet.read_bigearthnet
    refused("S2A_9: there is no folder of this patch", read, patches, ("B2",), splits=files)


def test_the_second_version_has_its_labels_in_a_table(patches, tmp_path, monkeypatch):
    table = {
        "S2A_0": (["Marine waters"], "test"),
        "S2A_2": (["Pastures"], "train"),
    }
    monkeypatch.setattr(bigearthnet, "_read_table", lambda path: table)
    own = bigearthnet.read_bigearthnet(patches, ("B2",), metadata=tmp_path / "metadata.parquet")
    assert own.names == ("S2A_0", "S2A_2")
    assert own.splits == ("test", "train")
    assert own.labels[1, bigearthnet.CLASSES.index("Pastures")]


def test_a_parquet_table_is_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "metadata.parquet"
    columns = {"patch_id": ["a"], "labels": [["Pastures"]], "split": ["train"], "country": ["x"]}
    parquet.write_table(pyarrow.table(columns), path)
    assert bigearthnet._read_table(path) == {"a": (["Pastures"], "train")}
    path.write_bytes(path.read_bytes()[:20])
    refused("metadata.parquet: cannot be read as a table", bigearthnet._read_table, path)


def test_without_pyarrow_the_extra_is_named(patches, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match="pyarrow"):
        bigearthnet.read_bigearthnet(patches, ("B2",), metadata=tmp_path / "a.parquet")


def test_bad_patches_are_named(patches):
    read, first = bigearthnet.read_bigearthnet, patches / "T33/S2A_0"
    refused("bands: expected some of B1, .*got B10", read, patches, ("B10",))
    refused(r"S2A_0_B03\.tif: no such file", read, patches, ("B3",))
    content = (first / "S2A_0_B04.tif").read_bytes()
    (first / "S2A_0_B04.tif").write_bytes(content[: len(content) // 3])
    refused(r"S2A_0_B04\.tif: cannot be read", read, patches, ("B4",))
    (first / "S2A_0_labels_metadata.json").write_text('{"labels": ["Moon"]}')
    refused("S2A_0: labels: expected classes of BigEarthNet, got 'Moon'", read, patches, ("B2",))
    (first / "S2A_0_labels_metadata.json").write_text('{"labels": ')
    refused("labels_metadata.json: cannot be read as JSON", read, patches, ("B2",))
    refused("no such folder", read, patches.parent / "x")
    (patches.parent / "empty").mkdir()
    refused("holds no patch", read, patches.parent / "empty")


def test_a_tile_without_data_is_refused(patches):
    rasterio = pytest.importorskip("rasterio")
    path = patches / "T33/S2A_0/S2A_0_B02.tif"
    with rasterio.open(path, "r+") as file:
        file.write(np.zeros((1, 12, 12), np.uint16))
    refused(
        r"S2A_0_B02\.tif: expected a pixel with data, got nodata everywhere",
        bigearthnet.read_bigearthnet,
        patches,
        ("B2",),
    )


def test_numbers_that_were_scaled_before_are_refused():
    names = tuple(SENTINEL2)
    scaled = np.full((2, 4, 4, 13), 3000, np.uint16) / 10000.0
    for policy, given in (("dataset", {}), ("model", {"full_scale": 10000.0})):
        refused(
            "images: expected values up to about 10000, got at most 0.3: they were scaled before",
            normalization.normalize,
            scaled,
            names,
            policy,
            FMOW_SENTINEL,
            **given,
        )


@pytest.fixture
def eurosat(tmp_path):
    """Two samples; the array's value is the true band's number in Sentinel-2's order."""
    h5py = pytest.importorskip("h5py")
    folder = tmp_path / "m-eurosat"
    folder.mkdir()
    true = [list(SENTINEL2).index(name) for name in EUROSAT_MS]
    for number, name in enumerate(("one", "two")):
        with h5py.File(folder / f"{name}.hdf5", "w") as file:
            for wrong, value in zip(SENTINEL2, true, strict=True):
                code = "08A" if wrong == "B8A" else f"{int(wrong[1:]):02d}"
                file[f"{code} - Some name_NoDate"] = np.full((4, 4), 100 + value, np.int16)
            written = pickle.dumps({"label": 7 + number, "bands_order": ["a"]})
            file.attrs["pickle"] = str(written)
    splits = {"train": ["two", "one"], "valid": [], "test": ["three"]}
    (folder / "default_partition.json").write_text(json.dumps(splits))
    return folder


def test_bands_of_geobench_are_what_they_are_called(eurosat):
    own = geobench.read_geobench(eurosat, "train", ("B8A", "B9", "B12", "B4"))
    places = [list(SENTINEL2).index(name) for name in ("B8A", "B9", "B12", "B4")]
    np.testing.assert_array_equal(own.images[0, 0, 0], 100 + np.array(places))
    np.testing.assert_array_equal(own.labels, [8, 7])
    assert own.names == ("two", "one")
    other = eurosat.with_name("m-other")
    eurosat.rename(other)
    named = geobench.read_geobench(other, "train", ("B9",))
    assert named.images[0, 0, 0, 0] == 100 + list(SENTINEL2).index("B10")


def test_short_names_of_bands():
    long = ("08A - Vegetation Red Edge_2018-05-01", "01 - Coastal aerosol", "Red", "VV")
    assert [geobench.canonical(own) for own in long] == ["B8A", "B1", "R", "VV"]


class Trap:
    """What it is when it is unpickled: a failed test."""

    def __reduce__(self):
        return pytest.fail, ("a file was unpickled",)


def test_bad_samples_are_named_and_nothing_is_unpickled(eurosat):
    h5py = pytest.importorskip("h5py")
    read = geobench.read_geobench
    refused("expected samples of the split valid", read, eurosat, "valid", ("B4",))
    refused(r"three\.hdf5: is in the split test, but no such", read, eurosat, "test", ("B4",))
    refused("expected band B99, got B1, B2", read, eurosat, "train", ("B99",))
    with h5py.File(eurosat / "two.hdf5", "r+") as file:
        file.attrs["pickle"] = str(pickle.dumps({"label": Trap()}))
    refused(r"two\.hdf5: expected one class as its label", read, eurosat, "train", ("B4",))
    content = (eurosat / "two.hdf5").read_bytes()
    (eurosat / "two.hdf5").write_bytes(content[:200])
    refused(r"two\.hdf5: cannot be read as HDF5", read, eurosat, "train", ("B4",))
    outside = {"train": ["../two"]}
    (eurosat / "default_partition.json").write_text(json.dumps(outside))
    refused("is in the split train, but no such file", read, eurosat, "train", ("B4",))


@pytest.fixture
def described(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    entries = []
    for number, split in enumerate(("train", "test", "train")):
        Image.fromarray(np.full((6, 6, 3), 50 * number, np.uint8)).save(folder / f"{number}.png")
        sentences = [{"raw": f" Picture {number} . "}, {"raw": "A square ."}]
        own = {"filename": f"{number}.png", "split": split, "sentences": sentences[: 1 + number]}
        entries.append(own)
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"images": entries, "dataset": "ucm"}))
    return folder, path, entries


def test_images_come_with_all_their_captions(described):
    folder, path, _ = described
    own = captions.read_captions(folder, path)
    assert own.images.shape == (3, 6, 6, 3)
    assert own.captions[2] == ("Picture 2 .", "A square .")
    texts, image = own.flat()
    assert len(texts) == 5
    np.testing.assert_array_equal(image, [0, 1, 1, 2, 2])
    only = captions.read_captions(folder, path, "test")
    assert only.names == own.split("test").names == ("1.png",)


def test_bad_captions_are_named(described, tmp_path):
    folder, path, entries = described
    read = captions.read_captions
    refused("split val", read, folder, path, "val")
    for change, message in (
        ({"sentences": []}, "image 1: 1.png: expected a caption"),
        ({"sentences": [{"text": "a"}]}, "image 1: expected filename, split and sentences"),
        ({"filename": "9.png"}, "expected 9.png of dataset.json, got no such"),
        ({"filename": 3}, "image 1: expected filename and split as texts"),
    ):
        path.write_text(json.dumps({"images": [entries[0], entries[1] | change]}))
        refused(message, read, folder, path)
    path.write_text("[1, 2")
    refused("cannot be read as JSON", read, folder, path)
    path.write_text(json.dumps({"images": entries}))
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:40])
    refused(r"1\.png: cannot be read as an image", read, folder, path)
    archive = tmp_path / "bad.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../0.png", b"")
    refused("is a path outside of the zip", read, archive, path)
