"""Image-classification tasks from image files, in the layout of torchvision's ImageFolder.

    NAME/train/CLASS/*.png, *.jpg, ...      NAME/test/CLASS/*.png, *.jpg, ...

Classes are the sorted names of the folders in `train`; images of a class are those in its folder
and in folders below it, sorted by path, through links as well. Hidden files and folders, and files
whose suffix is none of `SUFFIXES`, are ignored. Every image becomes RGB as Pillow converts it: gray
is repeated, palettes are looked up, transparency is dropped; orientations in EXIF are not applied.
The first frame of an animation is taken.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxmethods.errors import DataError, first_line

SPLITS = ("train", "test")
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's decoders that may be used, whatever a file is called; others start programs."""
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class Source(NamedTuple):
    """Where the images of one split are."""

    files: list[Path]
    labels: list[int]


def read_image_folder(folder: Path, size: int | None = None) -> dict[str, np.ndarray]:
    """Reads a task into the arrays that the npz file of a task has (see `images`).

    The images of a split are one array, N x H x W x 3 bytes: 7.5 MB for a thousand of 50 x 50,
    9.6 GB for 64,000 of 224 x 224. While they are read there is one more image beside it.

    Args:
        size: None: all images are of the size of the first one. Otherwise they are resized to this
            length of the shorter side (bicubic) and the middle is cut out: size x size.

    Raises:
        DataError: names the folder or file, and says what is wrong with it.
    """
    train = _class_folders(folder / "train")
    names = [path.name for path in train]
    test = _class_folders(folder / "test")
    for path in test:
        if path.name not in names:
            raise DataError(
                f"data {path}: expected one of the {len(names)} classes that {folder / 'train'} "
                f"has, got {path.name!r}"
            )
    sources = [_source(paths, names) for paths in (train, test)]
    first = sources[0].files[0]
    like = _read_image(first, size).shape[:2]
    arrays = {"class_names": np.array(names)}
    for split, source in zip(SPLITS, sources, strict=True):
        arrays[f"{split}_images"] = _read_images(source.files, size, like, first)
        arrays[f"{split}_labels"] = np.array(source.labels, np.int32)
    return arrays


def _class_folders(split: Path) -> list[Path]:
    if not split.is_dir():
        raise DataError(f"data {split}: no such folder; expected train and test")
    entries = [path for path in split.iterdir() if not path.name.startswith(".")]
    for path in entries:
        _check_link(path)
    found = [path for path in entries if path.is_dir()]
    if not found:
        raise DataError(f"data {split}: holds no folder; expected one for each class")
    return sorted(found, key=lambda path: path.name)


def _source(classes: list[Path], names: list[str]) -> Source:
    files, labels = [], []
    for folder in classes:
        images = _image_files(folder)
        if not images:
            raise DataError(f"data {folder}: holds no image ({', '.join(SUFFIXES)})")
        files += images
        labels += [names.index(folder.name)] * len(images)
    return Source(files, labels)


def _image_files(folder: Path, above: tuple[Path, ...] = ()) -> list[Path]:
    """Images in a folder and below, also behind links: none is left out silently."""
    above = (*above, folder.resolve())
    found: list[Path] = []
    try:
        entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise DataError(f"data {folder}: cannot be read ({error.strerror})") from error
    for path in entries:
        if path.is_dir():
            if path.resolve() in above:
                raise DataError(f"data {path}: is a link to a folder that it lies in")
            found += _image_files(path, above)
        elif path.suffix.lower() in SUFFIXES:
            _check_link(path)
            if not path.is_file():
                raise DataError(f"data {path}: expected an image file, got something else")
            found.append(path)
    return sorted(found, key=lambda path: path.parts)


def _check_link(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise DataError(f"data {path}: is a link to {path.readlink()}, which leads nowhere")


def _read_images(
    files: list[Path], size: int | None, like: tuple[int, ...], first: Path
) -> np.ndarray:
    try:
        images = np.empty((len(files), *like, 3), np.uint8)
    except MemoryError as error:
        raise DataError(
            f"data {first}: {len(files)} images of {like[0]} x {like[1]} pixels don't fit into "
            "memory; a smaller image_size makes them smaller"
        ) from error
    for place, file in enumerate(files):
        image = _read_image(file, size)
        if image.shape[:2] != like:
            raise DataError(
                f"data {file}: expected {like[0]} x {like[1]} pixels (height x width) like "
                f"{first}, got {image.shape[0]} x {image.shape[1]}; image_size makes all alike"
            )
        images[place] = image
    return images


def _read_image(file: Path, size: int | None) -> np.ndarray:
    """[H, W, 3] uint8"""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata and transparency, for every file again
            # Pillow only warns of images that are up to twice as large as it allows.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                if image.mode[0] in "IF":  # conversion would cut values off at 255
                    raise ValueError(f"expected 8 bits a channel, got mode {image.mode}")
                rgb = image.convert("RGB")
            return np.asarray(rgb if size is None else _square(rgb, size))
    except Exception as error:  # decoders raise of everything: SyntaxError, struct.error, ...
        raise DataError(f"data {file}: cannot be read as an image ({first_line(error)})") from error


def _square(image: Image.Image, size: int) -> Image.Image:
    shorter = min(image.size)
    width, height = (size * side // shorter for side in image.size)
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and width * height > most:
        raise ValueError(
            f"resized it would have {width} x {height} pixels, more than the {most} allowed"
        )
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + size, top + size))
