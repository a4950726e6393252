"""Places on Earth that every machine knows: the towns that time zones are named after.

    places = read_places()                  # of the system's zone.tab, or the package tzdata's
    places.coordinates, places.regions      # [N, 2] degrees, "Europe", "America", ...

The table (public domain, iana.org/time-zones) has a line for every zone of every country: its code,
the coordinates of its largest town (ISO 6709), the zone's name. The region before the slash is what
the zone's name says: mostly the continent, or the ocean that the town lies in.
"""

from __future__ import annotations

import datetime
import importlib.util
import re
import zoneinfo
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmethods.errors import DataError, first_line

NAME = "zone.tab"
PLACE = re.compile(r"([+-])(\d{2})(\d{2})(\d{2})?([+-])(\d{3})(\d{2})(\d{2})?")
WINTER = datetime.datetime(2025, 1, 15, 12)
"""When offsets are taken."""


class Places(NamedTuple):
    """Towns and what is known of them."""

    names: tuple[str, ...]
    """"Kabul", "Buenos Aires"."""
    countries: tuple[str, ...]
    """ISO 3166 codes."""
    regions: tuple[str, ...]
    """"Europe", "America", "Pacific", ..."""
    coordinates: np.ndarray
    """[N, 2] float64 latitude and longitude in degrees."""
    offsets: np.ndarray
    """[N] float64 hours from UTC in January."""


def read_places(path: Path | str | None = None) -> Places:
    """Reads the table of time zones.

    Args:
        path: a `zone.tab`; None: the system's, or the one of the package tzdata.

    Returns:
        The places, in the table's order.

    Raises:
        DataError: there is no table, or a line that is none of it.
    """
    path = _find() if path is None else Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data {path}: cannot be read ({first_line(error)})") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("#"):
            rows.append(_row(line, f"data {path}: line {number}"))
    if not rows:
        raise DataError(f"data {path}: expected lines of code, coordinates and zone, got none")
    countries, coordinates, zones, offsets = zip(*rows, strict=True)
    return Places(
        tuple(zone.rsplit("/", 1)[-1].replace("_", " ") for zone in zones),
        countries,
        tuple(zone.split("/", 1)[0] for zone in zones),
        np.array(coordinates),
        np.array(offsets),
    )


def _find() -> Path:
    folders = [Path(folder) for folder in zoneinfo.TZPATH]
    package = importlib.util.find_spec("tzdata")
    if package is not None and package.origin is not None:
        folders.append(Path(package.origin).parent / "zoneinfo")
    for folder in folders:
        if (folder / NAME).is_file():
            return folder / NAME
    raise DataError(
        f"data: no {NAME} in {', '.join(map(str, folders))}; the package tzdata has one"
    )


def _row(line: str, where: str) -> tuple[str, tuple[float, float], str, float]:
    parts = line.split("\t")
    match = PLACE.fullmatch(parts[1]) if len(parts) >= 3 else None
    if match is None:
        raise DataError(f"{where}: expected code, coordinates and zone, got {line[:60]!r}")
    signs = (match[1], match[5])
    numbers = (match.groups()[1:4], match.groups()[5:8])
    latitude, longitude = (
        (-1 if sign == "-" else 1) * sum(int(own or 0) / 60**n for n, own in enumerate(angle))
        for sign, angle in zip(signs, numbers, strict=True)
    )
    try:
        offset = zoneinfo.ZoneInfo(parts[2]).utcoffset(WINTER)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError) as error:
        raise DataError(f"{where}: {parts[2]}: is no known zone") from error
    assert offset is not None
    return parts[0], (latitude, longitude), parts[2], offset.total_seconds() / 3600
