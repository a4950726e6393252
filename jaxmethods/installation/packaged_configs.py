"""The configs that come with the package, found by name from any folder.

A checkout keeps them in `configs/`; a wheel carries the same files as `jaxmethods/configs/`. A name
is `METHOD/CONFIG`, or `CONFIG` alone where only one method has such a config.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from jaxmethods.config import ConfigError, nearest
from jaxmethods.files import write_atomically

PACKAGE = Path(__file__).parents[1]
LONGEST = 110
"""Characters of a summary."""


def folder() -> Path:
    """Where the packaged configs are.

    Raises:
        ConfigError: neither the wheel's folder nor a checkout's is there.
    """
    places = (PACKAGE / "configs", PACKAGE.parent / "configs")
    for place in places:
        if next(place.glob("*/*.yaml"), None):
            return place
    raise ConfigError(f"packaged configs: expected them in {places[0]}; install jaxmethods anew")


def packaged() -> dict[str, Path]:
    """Name, METHOD/CONFIG, to file; sorted."""
    return {f"{file.parent.name}/{file.stem}": file for file in sorted(folder().glob("*/*.yaml"))}


def summary(file: Path) -> str:
    """The first sentence of the comment that opens a config, in a line of its own."""
    comment = re.match(r"(?:#.*\n)*", file.read_text(encoding="utf-8"))
    text = re.sub(r"\s*\n#\s*", " ", "\n" + (comment[0] if comment else "")).strip()
    return textwrap.shorten(re.split(r"(?<=[.]) ", text)[0], LONGEST, placeholder=" ...")


def find(name: str) -> Path:
    """The packaged config of a name.

    Args:
        name: METHOD/CONFIG, or CONFIG where one method has it; `.yaml` may follow.

    Returns:
        Its file.

    Raises:
        ConfigError: there is none of that name, with the nearest one, or there are several.
    """
    known = packaged()
    asked = name.removesuffix(".yaml")
    if asked in known:
        return known[asked]
    fitting = [full for full in known if full.partition("/")[2] == asked]
    if len(fitting) == 1:
        return known[fitting[0]]
    if fitting:
        raise ConfigError(f"config {name}: which one? There are {', '.join(fitting)}")
    names = known if "/" in asked else {full.partition("/")[2] for full in known}
    close = nearest(asked, names)
    hint = close if "did you mean" in close else ""
    raise ConfigError(
        f"config {name}: is neither a file nor a packaged config{hint}; jaxmethods configs lists "
        "those"
    )


def resolve(given: Path) -> Path:
    """The file that `jaxmethods run GIVEN` means: a file of the user's, else a packaged config.

    Args:
        given: a path, or the name of a packaged config.

    Returns:
        A path; only one of a missing YAML file that has no packaged namesake does not exist.

    Raises:
        ConfigError: there is no such file or config, or only a packaged one has a path's name.
    """
    if given.exists():
        return given
    if given.suffix not in (".yaml", ".yml"):
        return find(given.as_posix())
    known = packaged()
    same = [full for full in known if full.partition("/")[2] == given.stem]
    namesake = "/".join((*given.parent.parts[-1:], given.stem))
    if namesake in known or len(same) == 1:
        namesake = namesake if namesake in known else same[0]
        raise ConfigError(
            f"config {given}: no such file; the packaged one is run by jaxmethods run {namesake} "
            f"and written by jaxmethods configs copy {namesake}"
        )
    return given


def copy(name: str, target: Path | None) -> Path:
    """Writes a packaged config as a file to be changed.

    Args:
        name: as for `find`.
        target: a new file, or a folder; None: the working folder.

    Returns:
        The file that was written.

    Raises:
        ConfigError: no such config, or a file is there already.
    """
    source = find(name)
    target = target or Path()
    target = target / source.name if target.is_dir() else target
    if target.exists():
        raise ConfigError(f"{target}: is there already; give another file with --to FILE")
    write_atomically(target, source.read_bytes())
    return target
