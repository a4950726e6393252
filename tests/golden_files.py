"""Where golden numbers are found: `JAXMETHODS_GOLDEN`, by default the folder beside this file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(os.environ.get("JAXMETHODS_GOLDEN", Path(__file__).parent / "golden"))


def golden_files(method: str, prefix: str) -> list:
    """Test parameters, one for each file of a method whose name begins with `prefix`."""
    files = sorted((FOLDER / method).glob(f"{prefix}*.npz"))
    assert files, f"no {prefix}*.npz in {FOLDER / method}"
    return [pytest.param(file, id=file.stem) for file in files]


def read(file: Path) -> dict[str, np.ndarray]:
    """All arrays of a file."""
    with np.load(file) as arrays:
        return {name: arrays[name] for name in arrays.files}
