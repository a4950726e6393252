"""Images with several captions each, in the JSON of UCM-captions, RSICD and RSITMD.

    {"images": [{"filename": "1.tif", "split": "train", "sentences": [{"raw": "..."}, ...]}, ...]}

Images lie in one folder or zip, at any depth. Captions are kept as they are written, stripped.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from jaxmethods.data.classified import list_members, read_picture
from jaxmethods.errors import DataError, first_line
from jaxmethods.files import parse_json


class Captioned(NamedTuple):
    """Images and what is said of them."""

    images: np.ndarray
    """[N, H, W, 3] uint8."""
    captions: tuple[tuple[str, ...], ...]
    """One or more of every image."""
    names: tuple[str, ...]
    splits: tuple[str, ...]

    def split(self, name: str) -> Captioned:
        """The images of one split. Raises `DataError` where it has none."""
        rows = [place for place, own in enumerate(self.splits) if own == name]
        if not rows:
            raise DataError(
                f"split: expected one of {', '.join(sorted(set(self.splits)))}, got {name!r}"
            )
        words = (tuple(own[place] for place in rows) for own in self[1:])
        return Captioned(self.images[rows], *words)  # type: ignore[arg-type]

    def flat(self) -> tuple[list[str], np.ndarray]:
        """All captions, and the index [T] of the image that each describes."""
        texts = [text for own in self.captions for text in own]
        numbers = [len(own) for own in self.captions]
        return texts, np.repeat(np.arange(len(numbers)), numbers)


def read_captions(root: Path | str, captions: Path | str, split: str | None = None) -> Captioned:
    """Reads images with their captions.

    Args:
        root: a folder or a zip of the images.
        captions: the JSON file.
        split: only these images are read; None: all.

    Returns:
        The images, in the order of the JSON file.

    Raises:
        DataError: names the file and the entry, and says what is wrong with it.
    """
    root, captions = Path(root), Path(captions)
    members = list_members(root)
    by_name: dict[str, list[str]] = {}
    for path in members:
        by_name.setdefault(PurePosixPath(path).name, []).append(path)
    images, rows = [], []
    for place, entry in enumerate(_entries(captions)):
        name, own_split, texts = _checked(entry, f"data {captions}: image {place}")
        if split not in (None, own_split):
            continue
        found = [name] if name in members else by_name.get(name, [])
        if len(found) != 1:
            number = "no" if not found else f"{len(found)} images"
            raise DataError(f"data {root}: expected {name} of {captions.name}, got {number} such")
        image = read_picture(members[found[0]].read(), f"{root}: {found[0]}")
        if images and image.shape != images[0].shape:
            raise DataError(
                f"data {root}: {name}: expected {images[0].shape[0]} x {images[0].shape[1]} pixels "
                f"like {rows[0][1]}, got {image.shape[0]} x {image.shape[1]}"
            )
        images.append(image)
        rows.append((texts, name, own_split))
    if not rows:
        raise DataError(f"data {captions}: expected images of the split {split}, got none")
    texts, names, splits = zip(*rows, strict=True)
    return Captioned(np.stack(images), texts, names, splits)


def _entries(path: Path) -> list[Any]:
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"data {path}: cannot be read as JSON ({first_line(error)})") from error
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"data {path}: images: expected a list of images, got none")
    return entries


def _checked(entry: Any, where: str) -> tuple[str, str, tuple[str, ...]]:
    """File name, split and captions of an entry."""
    try:
        name, split = entry["filename"], entry["split"]
        texts = tuple(own["raw"].strip() for own in entry["sentences"])
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{where}: expected filename, split and sentences with raw, got {first_line(error)}"
        ) from error
    if not isinstance(name, str) or not isinstance(split, str):
        raise DataError(f"{where}: expected filename and split as texts")
    if not texts or not all(texts):
        raise DataError(f"{where}: {name}: expected a caption, got none or an empty one")
    return name, split, texts
