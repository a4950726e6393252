"""Writes safetensors files whose tensors come one at a time, in any order, and in parts.

    with TensorFiles(folder, {"model.safetensors": {"norm.weight": Spec(dtype, (64,))}}) as files:
        files.write("norm.weight", first_half)
        files.write("norm.weight", second_half, start=32)

Headers need only names, types and shapes, so nothing but the part at hand is in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from jaxmethods.models.hub.folders import DTYPES

TYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Spec(NamedTuple):
    """What a header says of a tensor."""

    dtype: np.dtype
    shape: tuple[int, ...]

    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFiles:
    """Files that are whole once every entry of every tensor has been written."""

    def __init__(self, folder: Path, layout: Mapping[str, Mapping[str, Spec]]):
        """Creates the files with their headers.

        Args:
            layout: names of files -> names of their tensors -> what they are.
        """
        self._places: dict[str, tuple[BinaryIO, int, Spec]] = {}
        self._files: list[BinaryIO] = []
        for name, tensors in layout.items():
            self._create(folder / name, tensors)

    def _create(self, path: Path, tensors: Mapping[str, Spec]) -> None:
        # Wide types first: then every tensor lies at a multiple of its own width.
        order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
        # `transformers` opens a file only if it says whose layout its tensors have.
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        begins = {}
        end = 0
        for name in order:
            begin, end = end, end + tensors[name].nbytes()
            begins[name] = begin
            header[name] = {
                "dtype": TYPE_NAMES[tensors[name].dtype],
                "shape": list(tensors[name].shape),
                "data_offsets": [begin, end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        file = path.open("wb", buffering=0)
        self._files.append(file)
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        for name in order:
            self._places[name] = (file, 8 + len(text) + begins[name], tensors[name])

    def write(self, name: str, values: np.ndarray, start: int = 0) -> None:
        """Writes entries `start`, `start + 1`, ... of a tensor, in C order."""
        file, offset, spec = self._places[name]
        if values.dtype != spec.dtype:
            raise TypeError(f"{name}: expected {spec.dtype}, got {values.dtype}")
        file.seek(offset + start * spec.dtype.itemsize)
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        while data:
            data = data[file.write(data) :]

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()
