"""Files are whole or absent, and what the system refuses is said in one line."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxmethods.errors import DataError, UserError, first_line

STAGED = ".partial-"
"""Begins the name of a folder whose files are not in their places yet."""


HALVES = re.compile("[\ud800-\udfff]")
BLOCK = 1 << 22
"""Bytes that are hashed at a time."""


class FileError(UserError):
    """A file or folder that the system doesn't let us read or write."""


def reason(error: BaseException) -> str:
    """What the system said ("No space left on device"), or the first line of the message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    cause: BaseException | None = error
    while cause is not None:  # a full disk may be behind another error
        # Libraries in C++ put the system's words into a long message of their own.
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO):
            if os.strerror(number) in str(cause):
                return os.strerror(number)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return first_line(error)


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


def no_folder(path: Path) -> str:
    """What to say of a model folder that is none."""
    missing = "" if path.exists() else "; nothing is downloaded, give the folder of a model"
    return f"model {path}: not a folder{missing}"


def parse_json(text: str) -> Any:
    r"""What a JSON text holds, in strings that can be written.

    JSON may escape half of a character, "\ud83d", which no file and no tokenizer takes.

    Raises:
        ValueError: it is no JSON, or such a string is in it.
        RecursionError: it is nested too deeply.
    """
    found = json.loads(text)
    halves = HALVES.search(json.dumps(found, ensure_ascii=False)) if "\\u" in text else None
    if halves is not None:
        raise ValueError(f"holds half of a character, {halves[0]!r}")
    return found


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


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays under their names: all of the file or nothing.

    Raises:
        FileError: the disk is full, the folder is read-only or missing; what was there still is.
    """
    write_atomically(path, npz_bytes(arrays))


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """What an npz file of these arrays holds."""
    content = io.BytesIO()
    np.savez(content, **arrays)  # pyright: ignore[reportArgumentType]
    return content.getvalue()


def read_npz(
    path: Path | str,
    names: Sequence[str] | None = None,
    check: Callable[[Sequence[str]], None] | None = None,
) -> dict[str, np.ndarray]:
    """The arrays of an npz file; never pickles.

    Args:
        path: the file.
        names: arrays to read where they are there; None: all.
        check: called with the names of all arrays before one is read; may raise.

    Raises:
        DataError: it is missing or damaged, or holds something else than arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise DataError(f"data {path}: is not an npz archive")
            if check is not None:
                check(arrays.files)
            wanted = arrays.files if names is None else [n for n in names if n in arrays.files]
            return {name: _member(arrays, name) for name in wanted}
    except FileNotFoundError as error:
        raise DataError(f"data {path}: no such file") from error
    except UserError:
        raise
    except Exception as error:  # damaged archives raise zlib.error, BadZipFile, struct.error, ...
        raise DataError(f"data {path}: cannot be read as npz ({first_line(error)})") from error


def _member(arrays: Any, name: str) -> np.ndarray:
    try:
        array = arrays[name]
    except Exception as error:
        raise ValueError(f"{name}: {first_line(error)}") from error
    if not isinstance(array, np.ndarray):  # numpy hands over the bytes of a member that is none
        raise ValueError(f"{name}: is not an array")
    return array


def sha256(path: Path, stop: Callable[[], bool] = lambda: False) -> str:
    """SHA-256 of a file in hexadecimal digits; of its beginning once `stop` says true."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        while (block := stream.read(BLOCK)) and not stop():
            digest.update(block)
    return digest.hexdigest()


def let_others_read(folder: Path) -> None:
    """Makes a folder and all that is in it readable by others, whatever wrote it.

    Temporary folders, and files of some libraries, are their owner's alone.
    """
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name when it is whole; after an error it is gone.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield temporary
        let_others_read(temporary)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
            let_others_read(temporary)
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
