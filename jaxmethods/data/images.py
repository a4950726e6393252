"""Image-classification tasks: files of small images, and tasks made of scikit-learn's digits.

A folder holds for each task either a folder of image files, `NAME/train/CLASS/*.png` and
`NAME/test/CLASS/*.png` (see `image_folders`), or an npz file, `NAME.npz`, with

    train_images, test_images   uint8 [N, H, W, C], C = 1 or 3
    train_labels, test_labels   integers [N] in 0..K-1
    class_names                 text [K]

Gray images become RGB by repetition, and all tasks must have one size. Whatever is wrong with a
file is found when it is read, and the error names the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmethods.data.image_folders import SPLITS, read_image_folder
from jaxmethods.errors import DataError, import_extra
from jaxmethods.files import read_npz

KEYS = (*(f"{split}_{what}" for split in SPLITS for what in ("images", "labels")), "class_names")
DIGITS_TEST = 397
"""Images of scikit-learn's 1797 digits that are kept for testing."""


class Split(NamedTuple):
    """Images and what they show."""

    images: np.ndarray
    """[N, H, W, 3] uint8"""
    labels: np.ndarray
    """[N] int32"""


class Task(NamedTuple):
    """One classification task."""

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]


def read_tasks(
    folder: Path | str, names: Sequence[str] | None = None, image_size: int | None = None
) -> list[Task]:
    """Reads the tasks of a folder. All of their images are held in memory, N H W 3 bytes.

    Args:
        names: which, in this order; None: all npz files and all folders that have a folder
            `train`, by name.
        image_size: height and width. Image files are resized to it; None: they stay as they are.
            Those of npz files must have it.

    Raises:
        DataError: there is no such folder or file, a task has both, a file is damaged, or tasks
            differ in size.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"data {folder}: no such folder")
    paths = [_find(folder, name) for name in (_all_names(folder) if names is None else names)]
    if not paths:
        raise DataError(f"data {folder}: holds no .npz file, and no folder with a folder train")
    tasks = [read_task(path, image_size) for path in paths]
    for path, task in zip(paths, tasks, strict=True):
        size, first = task.train.images.shape[1:], tasks[0].train.images.shape[1:]
        if size != first:
            raise DataError(
                f"data {path}: expected images of {first[0]} x {first[1]} like "
                f"those of {paths[0].name}, got {size[0]} x {size[1]}"
            )
    return tasks


def _all_names(folder: Path) -> list[str]:
    files = {path.stem for path in folder.glob("*.npz")}
    folders = {path.parent.name for path in folder.glob("*/train") if path.is_dir()}
    return sorted(name for name in files | folders if not name.startswith("."))


def _find(folder: Path, name: str) -> Path:
    file, images = folder / f"{name}.npz", folder / name
    if images.is_dir() and file.exists():
        raise DataError(f"data {folder}: expected one of {file.name} and {images.name}/, got both")
    if not images.is_dir() and not file.exists():
        raise DataError(f"data {file}: no such file, and no folder {images.name}/ beside it")
    return images if images.is_dir() else file


def read_task(path: Path | str, image_size: int | None = None) -> Task:
    """Reads one task: an npz file, or a folder of image files.

    Args:
        image_size: see `read_tasks`.

    Raises:
        DataError: names the file, the array, what came and what was expected.
    """
    path = Path(path)
    if path.is_dir():
        return _checked(read_image_folder(path, image_size), path, path.name)
    task = _checked(_read_npz(path), path, path.stem)
    height, width = task.train.images.shape[1:3]
    if image_size not in (None, height) or image_size not in (None, width):
        raise DataError(
            f"data {path}: train_images: expected {image_size} x {image_size} like image_size, "
            f"got {height} x {width}"
        )
    return task


def _checked(arrays: dict[str, np.ndarray], file: Path, name: str) -> Task:
    names = arrays["class_names"]
    if names.ndim != 1 or names.dtype.kind not in "US" or len(names) < 2:
        raise DataError(
            f"data {file}: class_names: expected the names of at least 2 classes, "
            f"got {names.dtype} {names.shape}"
        )
    train, test = (_split(arrays, split, len(names), file) for split in SPLITS)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"data {file}: test_images: expected images like train_images "
            f"{train.images.shape[1:]}, got {test.images.shape[1:]}"
        )
    absent = np.setdiff1d(np.arange(len(names)), train.labels)
    if len(absent):
        raise DataError(
            f"data {file}: train_labels: expected images of all {len(names)} classes, "
            f"got none of class {absent[0]} ({names[absent[0]]})"
        )
    return Task(name, train, test, tuple(str(name) for name in names))


def _read_npz(file: Path) -> dict[str, np.ndarray]:
    arrays = read_npz(file)
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        found = ", ".join(sorted(arrays)) or "nothing"
        raise DataError(f"data {file}: {missing[0]}: missing; the file has {found}")
    return arrays


def _split(arrays: dict[str, np.ndarray], split: str, classes: int, file: Path) -> Split:
    images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    shape = images.shape
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in shape or shape[-1] not in (1, 3):
        raise DataError(
            f"data {file}: {split}_images: expected uint8 [N, H, W, 1 or 3], "
            f"got {images.dtype} {shape}"
        )
    if labels.dtype.kind not in "iu" or labels.shape != shape[:1]:
        raise DataError(
            f"data {file}: {split}_labels: expected integers [{shape[0]}], one for each image, "
            f"got {labels.dtype} {labels.shape}"
        )
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise DataError(
            f"data {file}: {split}_labels: expected 0 to {classes - 1} with {classes} class "
            f"names, got {wrong[0]}"
        )
    return Split(_rgb(images), labels.astype(np.int32))


def _rgb(images: np.ndarray) -> np.ndarray:
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


class DigitTask(NamedTuple):
    """How a task is made of images of digits."""

    label: Callable[[np.ndarray], np.ndarray]
    """Digits [N] -> classes [N]."""
    class_names: tuple[str, ...]
    draw: Callable[[np.ndarray], np.ndarray]
    """Images [N, 8, 8] in 0..16 -> the same changed."""


def _same(digits: np.ndarray) -> np.ndarray:
    return digits


TEN = tuple("0123456789")
DIGIT_TASKS: dict[str, DigitTask] = {
    "digits": DigitTask(_same, TEN, _same),
    "inverted": DigitTask(_same, TEN, lambda images: 16 - images),
    "rotated": DigitTask(_same, TEN, lambda images: np.rot90(images, axes=(1, 2))),
    "mirrored": DigitTask(_same, TEN, lambda images: images[:, :, ::-1]),
    "transposed": DigitTask(_same, TEN, lambda images: 16 - images.transpose(0, 2, 1)),
    "parity": DigitTask(lambda digits: digits % 2, ("even", "odd"), lambda x: np.roll(x, 4, 2)),
    "thirds": DigitTask(
        lambda digits: np.minimum(digits // 4, 2),
        ("0 to 3", "4 to 7", "8 or 9"),
        lambda images: np.where(np.arange(8)[:, None] < 4, images, 0),
    ),
}
"""Task -> how it is made. "parity" cuts digits in the middle and swaps the halves, "thirds" shows
their upper halves only."""


def digit_tasks(names: Sequence[str], size: int = 16, seed: int = 0) -> list[Task]:
    """Tasks made of scikit-learn's 8 x 8 digits, enlarged by repetition of pixels.

    Every task has the same split into 1400 training and 397 test images.

    Args:
        names: of `DIGIT_TASKS`.
        size: height and width, a multiple of 8.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        ValueError: an unknown name, or a size that isn't a multiple of 8.
    """
    unknown = [name for name in names if name not in DIGIT_TASKS]
    if unknown:
        raise ValueError(f"digits: expected some of {', '.join(DIGIT_TASKS)}, got {unknown[0]!r}")
    if size % 8:
        raise ValueError(f"digits: expected a size that is a multiple of 8, got {size}")
    datasets = import_extra("sklearn.datasets", "digits")
    images, digits = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    images, digits = images[order].reshape(-1, 8, 8), digits[order]
    return [_digit_task(name, images, digits, size // 8) for name in names]


def _digit_task(name: str, images: np.ndarray, digits: np.ndarray, times: int) -> Task:
    made = DIGIT_TASKS[name]
    drawn = np.round(made.draw(images) * (255 / 16)).astype(np.uint8)
    large = _rgb(drawn.repeat(times, 1).repeat(times, 2)[..., None])
    labels = made.label(digits).astype(np.int32)
    test = Split(large[:DIGITS_TEST], labels[:DIGITS_TEST])
    return Task(name, Split(large[DIGITS_TEST:], labels[DIGITS_TEST:]), test, made.class_names)
