"""Tasks from folders of image files: what is read, and how everything that is wrong is named."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from PIL import Image

from jaxmethods.data.images import read_task, read_tasks
from jaxmethods.errors import DataError
from tests.data.test_images import arrays, save


def save_folder(folder, name="shapes", content=None):
    """The images of a task as PNG files; returns the task's folder."""
    content = arrays(channels=3) if content is None else content
    for split in ("train", "test"):
        labels = content[f"{split}_labels"]
        for place, (image, label) in enumerate(
            zip(content[f"{split}_images"], labels, strict=True)
        ):
            path = folder / name / split / content["class_names"][label] / f"{place:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return folder / name


def assert_error(reason, *, opens, path, **options):
    with pytest.raises(DataError) as error:
        read_tasks(path, **options)
    assert str(error.value).startswith(f"data {opens}: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_is_the_npz_file_of_the_same_images(tmp_path):
    content = arrays(channels=3)
    for split in ("train", "test"):  # folders are read class by class
        order = np.argsort(content[f"{split}_labels"], kind="stable")
        for what in ("images", "labels"):
            content[f"{split}_{what}"] = content[f"{split}_{what}"][order]
    folder = save_folder(tmp_path, "b", content)
    save(tmp_path, "a", **content)
    (folder / "train/class 1/.DS_Store.png").write_text("hidden")
    (folder / "train/class 1/notes.txt").write_text("no image")
    (folder / "train/.cache").mkdir()
    (tmp_path / "no task").mkdir()
    for names in (None, ["a", "b"]):
        one, two = read_tasks(tmp_path, names)
        assert (one.name, two.name) == ("a", "b")
        assert one.class_names == two.class_names
        for left, right in ((one.train, two.train), (one.test, two.test)):
            for mine, theirs in zip(left, right, strict=True):
                np.testing.assert_array_equal(mine, theirs)
                assert mine.dtype == theirs.dtype
    assert [task.name for task in read_tasks(tmp_path, ["b"])] == ["b"]


def test_gray_palette_transparent_and_animated_images_become_rgb(tmp_path):
    gray = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
    colors = np.stack([gray, gray[::-1], gray.T], -1)
    palette = Image.fromarray(colors).quantize(64)
    looked_up = np.asarray(palette.convert("RGB"))
    opaque = np.concatenate([colors, gray[..., None]], -1)
    made = {
        "0 gray": (Image.fromarray(gray), {}, np.repeat(gray[..., None], 3, -1)),
        "1 palette": (palette, {}, looked_up),
        "2 clear palette": (palette, {"transparency": bytes(64)}, looked_up),
        "3 transparent": (Image.fromarray(opaque), {}, colors),
        "4 two frames": (
            Image.fromarray(colors),
            {"save_all": True, "append_images": [Image.fromarray(colors[::-1])]},
            colors,
        ),
    }  # fmt: skip
    for name, (image, options, _) in made.items():
        for split in ("train", "test"):
            path = tmp_path / split / name / "1.png"
            path.parent.mkdir(parents=True)
            image.save(path, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task = read_task(tmp_path)
    assert task.class_names == tuple(made)
    for found, (_, _, expected) in zip(task.train.images, made.values(), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_image_size_resizes_the_shorter_side_and_cuts_out_the_middle(tmp_path):
    folder = save_folder(tmp_path)
    wide = Image.fromarray(np.random.default_rng(1).integers(0, 256, (8, 24, 3), dtype=np.uint8))
    wide.save(folder / "train/class 0/00.png")
    Image.new("RGB", (3, 40)).save(folder / "test/class 0/00.png")
    (task,) = read_tasks(tmp_path, image_size=4)
    expected = wide.resize((12, 4), Image.Resampling.BICUBIC).crop((4, 0, 8, 4))
    np.testing.assert_array_equal(task.train.images[0], np.asarray(expected))
    assert task.test.images.shape == (4, 4, 4, 3)
    (same,) = read_tasks(save_folder(tmp_path / "square").parent, image_size=8)
    np.testing.assert_array_equal(same.train.images[0], arrays(channels=3)["train_images"][0])


def test_images_of_another_size_are_named_with_both_sizes(tmp_path):
    folder = save_folder(tmp_path)
    wrong = folder / "test/class 1/01.png"
    Image.new("RGB", (6, 8)).save(wrong)
    first = folder / "train/class 0/00.png"
    reason = f"expected 8 x 8 pixels (height x width) like {first}, got 8 x 6"
    assert_error(reason, opens=wrong, path=tmp_path)
    file = save(tmp_path, "npz")
    reason = "train_images: expected 6 x 6 like image_size, got 8 x 8"
    assert_error(reason, opens=file, path=tmp_path, image_size=6)


def test_what_is_wrong_with_a_folder_is_named(tmp_path):
    folder = save_folder(tmp_path)

    def assert_named(reason, path):
        assert_error(reason, opens=path, path=tmp_path, names=["shapes"])
        assert_error(reason, opens=path, path=tmp_path)

    (folder / "train/class 2 b").mkdir()
    (folder / "train/class 2 b/1.txt").write_text("no image")
    assert_named("holds no image (.bmp, ", folder / "train/class 2 b")
    (folder / "train/class 2 b").rename(folder / "test/class 3")
    assert_named("expected one of the 3 classes", folder / "test/class 3")
    (folder / "test").rename(folder / "val")
    assert_named("no such folder; expected train and test", folder / "test")
    (folder / "test").mkdir()
    assert_named("holds no folder; expected one for each class", folder / "test")
    save(tmp_path)
    assert_named("expected one of shapes.npz and shapes/, got both", tmp_path)
    absent = tmp_path / "other.npz"
    reason = "no such file, and no folder other/ beside it"
    assert_error(reason, opens=absent, path=tmp_path, names=["other"])


def test_images_behind_links_count_and_links_that_lead_nowhere_are_named(tmp_path):
    folder = save_folder(tmp_path / "data")
    (whole,) = read_tasks(folder.parent)
    own = folder / "train/class 0"
    own.rename(tmp_path / "elsewhere")
    own.mkdir()
    (own / "more").symlink_to(tmp_path / "elsewhere")
    file = folder / "test/class 1/01.png"
    file.rename(tmp_path / "01.png")
    file.symlink_to(tmp_path / "01.png")
    (linked,) = read_tasks(folder.parent)
    for ours, theirs in ((linked.train, whole.train), (linked.test, whole.test)):
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
    (tmp_path / "01.png").unlink()
    options = {"path": folder.parent, "opens": file}
    assert_error(f"is a link to {tmp_path / '01.png'}, which leads nowhere", **options)
    file.unlink()
    file.symlink_to(file)
    assert_error("which leads nowhere", **options)
    file.unlink()
    (own / "back").symlink_to(folder / "train")
    back = own / "back/class 0"
    assert_error("is a link to a folder that it lies in", path=folder.parent, opens=back)
    (own / "back").unlink()
    gone = folder / "train/class 9"
    gone.symlink_to(tmp_path / "gone")
    assert_error("which leads nowhere", path=folder.parent, opens=gone)


def test_files_that_are_no_whole_images_are_named(tmp_path, monkeypatch):
    folder = save_folder(tmp_path)
    path = folder / "test/class 1/01.png"
    whole = path.read_bytes()
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
    for content in (b"", b"no image", postscript, whole[:60], whole[:-30]):
        path.write_bytes(content)
        assert_error("cannot be read as an image (", opens=path, path=tmp_path)
    Image.fromarray(np.full((8, 8), 1000, np.uint16)).save(path)
    assert_error("expected 8 bits a channel, got mode I;16", opens=path, path=tmp_path)
    path.write_bytes(whole)
    for allowed, reason in ((40, "could be decompression bomb"), (20, "could be decompression")):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", allowed)  # half of the 64, and less
        first = folder / "train/class 0/00.png"
        assert_error(reason, opens=first, path=tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    Image.new("RGB", (1, 1000)).save(path)
    assert_error("resized it would have 8 x 8000 pixels", opens=path, path=tmp_path, image_size=8)
