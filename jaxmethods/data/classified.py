"""Images in folders of their class, or in a zip of them, with split files.

    data = read_classes("EuroSAT.zip")                      # a folder for each class, splits.csv
    data.split("train").images                              # [N, H, W, C]

EuroSAT, UCM, RESISC45 and AID are folders `CLASS/*.jpg|png|tif`, at any depth below the root, of
pictures of three bytes. Hidden files and folders are ignored, as is what macOS puts into its zips.
Zips are read where they are, never unpacked, and a member whose path leads outside is refused.
Whatever is wrong is one line that names the file.
"""

from __future__ import annotations

import csv
import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxmethods.data.image_folders import FORMATS, SUFFIXES
from jaxmethods.errors import DataError, first_line

SPLIT_FILE = "splits.csv"
OF_MACOS = "__MACOSX"
"""The folder of a zip that holds what is no file's content, under the files' names."""


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
        if not files:
            raise DataError(f"data {root}: expected a split with an image, got none")
    classes = tuple(sorted({PurePosixPath(name).parent.name for name in files}))
    if "" in classes:
        loose = next(name for name in files if "/" not in name)
        raise DataError(f"data {root}: {loose}: expected a folder of its class, got none")
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


class Member(NamedTuple):
    """A file of a folder or of a zip."""

    root: Path
    name: str
    archive: zipfile.ZipFile | None
    """The zip, which is open: each opening reads the names of all members."""

    def read(self) -> bytes:
        """Its content. Raises `DataError` where it is damaged."""
        try:
            if self.archive is None:
                return (self.root / self.name).read_bytes()
            return self.archive.read(self.name)
        except Exception as error:  # damaged members raise zlib.error, BadZipFile, ...
            raise DataError(
                f"data {self.root}: {self.name}: cannot be read ({first_line(error)})"
            ) from error


def list_members(root: Path) -> dict[str, Member]:
    """Path below the root -> file, of a folder or of a zip, without hidden ones.

    Raises:
        DataError: neither of them, or a zip with a path that leads outside.
    """
    if root.is_dir():
        files = [path for path in sorted(root.rglob("*")) if path.is_file()]
        names = [path.relative_to(root).as_posix() for path in files]
        return {name: Member(root, name, None) for name in names if _is_shown(name)}
    if not root.is_file():
        raise DataError(f"data {root}: no such folder or zip")
    try:
        archive = zipfile.ZipFile(root)
        names = [own.filename for own in archive.infolist() if not own.is_dir()]
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"data {root}: is no folder and no zip ({first_line(error)})") from error
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
            raise DataError(f"data {root}: {name}: is a path outside of the zip")
    return {name: Member(root, name, archive) for name in names if _is_shown(name)}


def _is_shown(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return OF_MACOS not in parts and not any(part.startswith(".") for part in parts)


def _split_names(
    root: Path, members: Mapping[str, Member], splits: Path | str | Mapping[str, Path] | None
) -> dict[str, str] | None:
    """The split of every path; None where nothing says."""
    if isinstance(splits, Mapping):
        found: dict[str, str] = {}
        for split, path in splits.items():
            lines = [line.strip() for line in _text(Path(path)).split("\n")]
            _add(found, [(line, split) for line in lines if line], members, f"{path}")
        return found
    if splits is None and SPLIT_FILE not in members:
        return None
    if splits is None:
        text, source = (
            members[SPLIT_FILE].read().decode("utf-8-sig", "replace"),
            f"{root}: {SPLIT_FILE}",
        )
    else:
        text, source = _text(Path(splits)), str(splits)
    rows = list(csv.DictReader(io.StringIO(text)))
    if not rows or not {"path", "split"} <= set(rows[0]):
        raise DataError(f"data {source}: expected the columns path and split")
    for number, row in enumerate(rows, 1):
        if not row["path"] or not row["split"]:
            raise DataError(f"data {source}: row {number}: expected a path and a split")
    found = {}
    _add(found, [(row["path"], row["split"]) for row in rows], members, source)
    return found


def _add(
    found: dict[str, str],
    pairs: Sequence[tuple[str, str]],
    members: Mapping[str, Member],
    source: str,
) -> None:
    """Notes (path, split) pairs under full names; one image is in one split."""
    for line, split in pairs:
        name = _full_name(line, members)
        if found.setdefault(name, split) != split:
            raise DataError(f"data {source}: {line} is in the splits {found[name]} and {split}")


def _full_name(line: str, members: Mapping[str, Member]) -> str:
    """A path of a split file as it stands below the root, which may have a folder around all."""
    if line in members:
        return line
    ends = [name for name in members if name.endswith(f"/{line}")]
    return ends[0] if len(ends) == 1 else line


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
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
