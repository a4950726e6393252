"""Tasks from files: what is read, and how everything that is wrong is named."""

from __future__ import annotations

import numpy as np
import pytest

from jaxmethods.data.images import DIGIT_TASKS, digit_tasks, read_task, read_tasks
from jaxmethods.errors import DataError


def arrays(channels=1, size=8, classes=3):
    random = np.random.default_rng(0)

    def images(count):
        return random.integers(0, 256, (count, size, size, channels), dtype=np.uint8)

    return {
        "train_images": images(9),
        "train_labels": np.arange(9) % classes,
        "test_images": images(4),
        "test_labels": np.arange(4) % classes,
        "class_names": np.array([f"class {c}" for c in range(classes)]),
    }


def save(folder, name="shapes", **changes):
    path = folder / f"{name}.npz"
    content = arrays() | changes
    np.savez(path, **{key: value for key, value in content.items() if value is not None})
    return path


def test_gray_images_become_rgb_and_files_are_tasks_by_name(tmp_path):
    save(tmp_path, "b")
    save(tmp_path, "a", **arrays(channels=3))
    one, two = read_tasks(tmp_path)
    assert (one.name, two.name) == ("a", "b")
    assert two.class_names == ("class 0", "class 1", "class 2")
    np.testing.assert_array_equal(one.train.images, arrays(channels=3)["train_images"])
    gray = arrays()["test_images"]
    for channel in range(3):
        np.testing.assert_array_equal(two.test.images[..., channel], gray[..., 0])
    assert [task.name for task in read_tasks(tmp_path, ["b"])] == ["b"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"test_labels": None}, "test_labels: missing; the file has class_names, test_images"),
        ({"train_images": np.zeros((9, 8, 8, 1))}, "train_images: expected uint8 [N, H, W, 1 or 3"),
        ({"train_images": np.zeros((9, 8, 8), np.uint8)}, "got uint8 (9, 8, 8)"),
        ({"test_images": np.zeros((0, 8, 8, 1), np.uint8)}, "got uint8 (0, 8, 8, 1)"),
        ({"test_images": np.zeros((4, 6, 8, 1), np.uint8)}, "expected images like train_images"),
        ({"train_labels": np.arange(8) % 3}, "train_labels: expected integers [9]"),
        ({"train_labels": np.zeros(9)}, "got float64 (9,)"),
        ({"test_labels": np.array([0, 1, 2, 3])}, "expected 0 to 2 with 3 class names, got 3"),
        ({"test_labels": np.array([0, -1, 2, 0])}, "got -1"),
        ({"class_names": np.array(["one"])}, "expected the names of at least 2 classes"),
        ({"class_names": np.arange(3)}, "class_names: expected the names"),
        ({"class_names": np.array(list("abcd"))}, "all 4 classes, got none of class 3 (d)"),
        ({"class_names": np.array(["a", None, "c"])}, "cannot be read as npz"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, changes, reason):
    path = save(tmp_path, **changes)
    with pytest.raises(DataError) as error:
        read_task(path)
    assert str(error.value).startswith(f"data {path}: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_files_and_absent_ones_are_named(tmp_path):
    path = save(tmp_path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no archive", whole[:900] + whole[1000:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"shapes\.npz: cannot be read as npz"):
            read_tasks(tmp_path)
    with pytest.raises(DataError, match=r"other\.npz: no such file"):
        read_tasks(tmp_path, ["other"])
    with pytest.raises(DataError, match="no such folder"):
        read_tasks(tmp_path / "nowhere")
    path.unlink()
    with pytest.raises(DataError, match=r"holds no \.npz file"):
        read_tasks(tmp_path)


def test_tasks_of_two_sizes_are_refused(tmp_path):
    save(tmp_path, "a")
    save(tmp_path, "b", **arrays(size=6))
    with pytest.raises(DataError, match=r"b\.npz: .*8 x 8 like those of a\.npz, got 6 x 6"):
        read_tasks(tmp_path)


def test_digits_make_tasks_that_differ(tmp_path):
    pytest.importorskip("sklearn")
    tasks = digit_tasks(list(DIGIT_TASKS))
    assert len({task.train.images.tobytes() for task in tasks}) == len(tasks)
    for task in tasks:
        assert task.train.images.shape == (1400, 16, 16, 3)
        assert task.test.images.shape == (397, 16, 16, 3)
        assert set(task.train.labels) == set(range(len(task.class_names)))
    plain, inverted = tasks[0].test.images.astype(int), tasks[1].test.images.astype(int)
    np.testing.assert_allclose(plain + inverted, 255, atol=1)
    with pytest.raises(ValueError, match="got 'letters'"):
        digit_tasks(["letters"])
    with pytest.raises(ValueError, match="multiple of 8, got 20"):
        digit_tasks(["digits"], size=20)
