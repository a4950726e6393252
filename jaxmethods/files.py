"""Files are whole or absent, and what the system refuses is said in one line."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jaxmethods.errors import UserError

STAGED = ".partial-"
"""Begins the name of a folder whose files are not in their places yet."""


class FileError(UserError):
    """A file or folder that the system doesn't let us read or write."""


def reason(error: BaseException) -> str:
    """What the system said ("No space left on device"), or the first line of the message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip() or type(error).__name__
    # Libraries in C++ put the system's words into a long message of their own.
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO):
        if os.strerror(number) in text:
            return os.strerror(number)
    return text.split("\n")[0][:300]


@contextmanager
def refusals(what: object, verb: str = "written") -> Iterator[None]:
    """Turns an `OSError` into a `FileError`: "WHAT: cannot be VERB (No space left on device)"."""
    try:
        yield
    except OSError as error:
        raise FileError(f"{what}: cannot be {verb} ({reason(error)})") from error


def is_file(path: Path) -> bool:
    """Whether there is a regular file. Raises `FileError` where the system doesn't let us see."""
    with refusals(path, "read"):
        try:
            return stat.S_ISREG(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes to a temporary name in the same folder, then renames: all of it or nothing.

    Raises:
        FileError: the disk is full, the folder is read-only or missing; what was there still is.
    """
    data = content.encode() if isinstance(content, str) else content
    with refusals(path):
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextmanager
def staged(folder: Path, shared: Sequence[str] = ()) -> Iterator[Path]:
    """A folder to write into, whose files and folders take their places in `folder` at the end.

    They replace what has their names; folders named in `shared` keep what else is in them. Whoever
    reads `folder` meanwhile sees the old or the new; after an error inside the context, the old.

    Raises:
        FileError: they cannot be written.
    """
    with refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=STAGED, dir=folder))
        try:
            yield temporary
            for written in temporary.rglob("*"):
                if written.is_file():
                    with written.open("rb+") as file:
                        os.fsync(file.fileno())
            for written in sorted(temporary.iterdir()):
                _take_place(written, folder / written.name, written.name in shared)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove(path: Path) -> None:
    """Removes a file or folder: its name at once, then what it holds."""
    with refusals(path, "removed"):
        if not path.is_dir() or path.is_symlink():
            path.unlink(missing_ok=True)
            return
        aside = path.with_name(f"{STAGED}{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(path, aside)
        shutil.rmtree(aside, ignore_errors=True)


def remove_staged(folder: Path) -> None:
    """Removes what a process that was killed left in a folder, half-written or half-removed."""
    for left in folder.glob(f"{STAGED}*"):
        shutil.rmtree(left, ignore_errors=True)


def _take_place(written: Path, place: Path, shared: bool) -> None:
    if written.is_dir() and place.is_dir() and not place.is_symlink():
        if shared:
            for below in sorted(written.iterdir()):
                _take_place(below, place / below.name, shared)
            return
        remove(place)
    os.replace(written, place)
