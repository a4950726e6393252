"""Images in folders of classes and in zips, and what is refused by name."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from jaxmethods.data import classified
from jaxmethods.errors import DataError

CLASSES = ("Forest", "River")


def jpeg(value, size=8):
    content = io.BytesIO()
    pixels = np.full((size, size, 3), value, np.uint8)
    pixels[0, 0] = value // 2
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def members():
    return {
        f"2750/{name}/{name}_{number}.png": jpeg(40 * place + 10 * number)
        for place, name in enumerate(CLASSES, 1)
        for number in range(3)
    }


def table(files):
    split = {0: "train", 1: "train", 2: "val"}
    rows = [f"{name},{split[int(name[-5])]}" for name in files]
    return "path,split\n" + "\n".join(rows) + "\n"


@pytest.fixture
def folder(tmp_path):
    for name, content in members().items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "data" / "splits.csv").write_text(table(members()))
    return tmp_path / "data"


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members().items():
            file.writestr(name, content)
        file.writestr("splits.csv", table(members()))
    return path


def test_a_zip_is_read_like_the_folder(folder, archive):
    one, other = classified.read_classes(folder), classified.read_classes(archive)
    np.testing.assert_array_equal(one.images, other.images)
    assert one.class_names == other.class_names == CLASSES
    assert one.hashes == other.hashes
    np.testing.assert_array_equal(other.labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(other.images[:, 4, 4, 0], [40, 50, 60, 80, 90, 100])
    assert other.split("val").names == tuple(name for name in one.names if name.endswith("2.png"))


def test_split_files_of_one_path_a_line(folder, tmp_path):
    lists = {}
    for split, last in (("train", "0.png"), ("test", "2.png")):
        lists[split] = tmp_path / f"{split}.txt"
        names = [name.partition("/")[2] for name in members() if name.endswith(last)]
        lists[split].write_text("\n".join(names))
    own = classified.read_classes(folder, lists)
    assert sorted(own.splits) == ["test", "test", "train", "train"]
    lists["test"].write_text(lists["train"].read_text())
    with pytest.raises(DataError, match="is in the splits train and test"):
        classified.read_classes(folder, lists)


def test_what_is_wrong_is_named(folder, archive, tmp_path):
    own = classified.read_classes(folder)
    with pytest.raises(DataError, match="expected one of train, val, got 'test'"):
        own.split("test")
    only = own._replace(splits=("train", "train", "train", "val", "val", "val"))
    with pytest.raises(DataError, match="got none of River"):
        only.split("train")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("../outside.png", b"")
    with pytest.raises(DataError, match=r"\.\./outside.png: is a path outside of the zip"):
        classified.read_classes(archive)
    broken = folder / "2750/Forest/Forest_1.png"
    broken.write_bytes(broken.read_bytes()[:30])
    with pytest.raises(DataError, match=r"Forest_1\.png: cannot be read as an image"):
        classified.read_classes(folder)
    (tmp_path / "no.zip").write_bytes(b"none")
    with pytest.raises(DataError, match="is no folder and no zip"):
        classified.read_classes(tmp_path / "no.zip")


def test_an_image_of_one_split_may_not_be_in_another(folder):
    (folder / "2750/River/River_9.png").write_bytes(jpeg(40))
    (folder / "splits.csv").write_text(table(members()) + "2750/River/River_9.png,val\n")
    own = classified.read_classes(folder)
    with pytest.raises(DataError, match=r"River_9.png is the same image as .*Forest_0.png"):
        classified.refuse_shared_images(own.split("train"), own.split("val"))


def test_a_zip_of_macos_and_names_with_spaces(tmp_path):
    path = tmp_path / "mac.zip"
    names = [f"2750/{name}/a {number}.png" for name in CLASSES for number in range(2)]
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, jpeg(100))
            file.writestr(f"__MACOSX/{name.replace('/a', '/._a')}", b"no picture")
        file.writestr("2750/.hidden/a.png", b"no picture")
    assert classified.read_classes(path).names == tuple(names)
    listed = tmp_path / "train.txt"
    listed.write_text("Forest/a 0.png\r\nRiver/a 1.png\n", newline="")
    own = classified.read_classes(path, {"train": listed})
    assert own.names == (names[0], names[3])
    listed.write_text("")
    with pytest.raises(DataError, match="expected a split with an image"):
        classified.read_classes(path, {"train": listed})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("2750/Forest/Forest_0.png,val", "is in the splits train and val"),
        ("2750/Forest/Forest_1.png", "row 2: expected a path and a split"),
    ],
)
def test_a_table_of_splits_says_one_of_every_image(folder, row, message):
    text = f"path,split\n2750/Forest/Forest_0.png,train\n{row}\n"
    (folder / "splits.csv").write_text(text, encoding="utf-8-sig")
    with pytest.raises(DataError, match=message):
        classified.read_classes(folder)


def test_an_image_outside_of_a_class_is_named(folder):
    (folder / "loose.png").write_bytes(jpeg(10))
    (folder / "splits.csv").unlink()
    with pytest.raises(DataError, match=r"loose\.png: expected a folder of its class"):
        classified.read_classes(folder)
