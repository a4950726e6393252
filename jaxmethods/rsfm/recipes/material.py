"""The images of a run: generated scenes, or folders of classes, in three parts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxmethods.data.classified import Classified, read_classes, refuse_shared_images
from jaxmethods.data.earth.normalization import dataset_statistics, normalize
from jaxmethods.data.earth.scenes import CLASSES, Scenes, synthetic_scenes
from jaxmethods.data.earth.sensors import RGB, Statistics
from jaxmethods.errors import DataError
from jaxmethods.rsfm.config import Run

FEWEST = 5
"""Training scenes that a pair of classes needs to be one of the classes."""
PARTS = ("train", "validation", "test")


class Material(NamedTuple):
    """What a run learns from and is judged on."""

    images: np.ndarray
    """[N, H, W, C] as they were read."""
    labels: np.ndarray
    """[N] int32"""
    class_names: tuple[str, ...]
    bands: tuple[str, ...]
    full_scale: float
    """The value of the images that counts as 1."""
    parts: dict[str, np.ndarray]
    """Indices of the images to learn from, to choose settings by, and to judge."""
    statistics: Statistics
    """Band statistics of the images to learn from."""
    valid: np.ndarray | None = None
    """[N, H, W] bool"""
    gsd: float | None = None
    """Meters of a pixel; None: not known."""
    scenes: Scenes | None = None
    """Generated scenes, in the order of the images."""

    def normalized(self, part: str, images: np.ndarray | None = None) -> np.ndarray:
        """Images of a part, [n, H, W, C] float32 by the training images' mean and deviation."""
        own = (self.images if images is None else images)[self.parts[part]]
        return normalize(own, self.bands, "dataset", self.statistics)

    def scaled(self, part: str) -> np.ndarray:
        """Images of a part, [n, H, W, C] float32 between 0 and 1."""
        return self.images[self.parts[part]].astype(np.float32) / np.float32(self.full_scale)


def read_material(run: Run) -> Material:
    """Reads or generates the images.

    Raises:
        UserError: what is wrong with them.
    """
    return _generated(run) if run.data.path is None else _read(run)


def _generated(run: Run) -> Material:
    own = run.scenes
    made = synthetic_scenes(run.seed, own.scenes, own.size, own.gsd)
    pairs = made.main_pairs()
    ends = (own.scenes * 3 // 5, own.scenes * 4 // 5)
    common = np.flatnonzero(np.bincount(pairs[: ends[0]], minlength=10) >= FEWEST)
    kept = np.isin(pairs, common)
    places = np.split(np.arange(own.scenes), ends)
    parts = {name: rows[kept[rows]] for name, rows in zip(PARTS, places, strict=True)}
    names = [f"{a} and {b}" for i, a in enumerate(CLASSES) for b in CLASSES[i + 1 :]]
    labels = np.where(kept, np.searchsorted(common, pairs), -1).astype(np.int32)
    images = made.bands(own.bands)
    train = parts["train"]
    return Material(
        images,
        labels,
        tuple(names[pair] for pair in common),
        own.bands,
        10000.0,
        parts,
        dataset_statistics(images[train], own.bands, made.valid[train]),
        made.valid,
        made.gsd,
        made,
    )


def _read(run: Run) -> Material:
    assert run.data.path is not None
    data = read_classes(run.data.path)
    parts = _parts_of(data, run.seed)
    pieces = {name: data.rows(rows) for name, rows in parts.items()}
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        refuse_shared_images(pieces[first], pieces[second])
    absent = np.setdiff1d(np.arange(len(data.class_names)), pieces["train"].labels)
    if len(absent):
        raise DataError(
            f"data {run.data.path}: expected training images of all classes, got none of "
            f"{data.class_names[absent[0]]}"
        )
    names = tuple(RGB)
    statistics = dataset_statistics(pieces["train"].images, names)
    own = Material(data.images, data.labels, data.class_names, names, 255.0, parts, statistics)
    return own._replace(gsd=run.data.gsd)


def _parts_of(data: Classified, seed: int) -> dict[str, np.ndarray]:
    """The splits of the files; what they don't have is drawn, a fifth of every class."""
    splits = np.array(data.splits)
    given = set(data.splits) - {""}
    held_out = "val" if "val" in given else "validation"
    if {"train", held_out, "test"} <= given:
        names = {"train": "train", "validation": held_out, "test": "test"}
        return {name: np.flatnonzero(splits == own) for name, own in names.items()}
    judged = next((name for name in ("test", "val", "validation") if name in given), None)
    rng = np.random.default_rng(seed)
    if judged is None or "train" not in given:
        train, test = _drawn(rng, data.labels, np.arange(len(splits)))
    else:
        train, test = np.flatnonzero(splits == "train"), np.flatnonzero(splits == judged)
    train, validation = _drawn(rng, data.labels, train)
    return {"train": train, "validation": validation, "test": test}


def _drawn(
    rng: np.random.Generator, labels: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Four fifths and one fifth of every class."""
    last: list[int] = []
    for label in np.unique(labels[rows]):
        own = rng.permutation(rows[labels[rows] == label])
        last.extend(own[: max(len(own) // 5, 1)].tolist())
    held = np.isin(rows, last)
    return rows[~held], rows[held]
