"""Lists of recordings as JSON Lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxmethods.errors import DataError, first_line
from jaxmethods.files import parse_json, refusals


def numbered_rows(manifest: Path) -> Iterator[tuple[int, Any]]:
    """What the lines of a file hold, with their numbers from 1; empty ones are left out.

    Raises:
        FileError, DataError: a file that can't be read, or a line that is no JSON.
    """
    with refusals(manifest, "read"):
        content = manifest.read_bytes()
    try:
        # Texts may hold what Python takes for the end of a line, such as U+2028.
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"data {manifest}: is not text in UTF-8") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield number, parse_json(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"data {manifest}: line {number}: is not valid JSON ({first_line(error)})"
            ) from error
