"""Breaks the library one line at a time, and says which breaks no test notices.

A test that passes whatever the code does states nothing. Here each formula is made wrong on
purpose (a sign, a dropped term, an off-by-one, a missing stop_gradient, a swapped axis), and the
tests that state the formula must fail:

    python tests/mutations.py                       # all mutations: about twenty minutes
    python tests/mutations.py merging della         # those whose text has all of these words

Every folder of tests lists the mutations of its package in `mutations.py`, as rows

    (file, original, mutated, what is wrong, tests)        a sixth entry excuses a survivor

with `file` below `jaxmethods/PACKAGE/`, `original` a text that occurs in it exactly once, and
`tests` one or several paths or pytest ids below `tests/PACKAGE/`. A new method adds its own list.

The package is copied to a temporary folder, so the sources are never touched. Mutations whose text
is not found exactly once, that don't import, or whose tests fail without them, are invalid.
"""

from __future__ import annotations

import functools
import os
import posixpath
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 600
"""Seconds; code that runs longer than this is taken for an endless loop, which a test notices."""
PYTEST = ("-m", "pytest", "-x", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist")
FAILED, NO_SUCH_TEST = 1, (4, 5)
"""Exit codes of pytest."""


class Mutation(NamedTuple):
    """One wrong line."""

    file: str
    """Below the root, like all paths here."""
    original: str
    mutated: str
    wrong: str
    """What the mutated line computes, in words."""
    tests: tuple[str, ...]
    """Which tests have to notice."""
    excuse: str = ""
    """Why it may survive."""

    def __str__(self) -> str:
        return f"{self.file}: {self.wrong}"


class Outcome(NamedTuple):
    """What the tests said to a mutation."""

    kind: str
    """killed, survived or invalid."""
    detail: str = ""
    """The test that failed, or why the mutation is invalid."""


def all_mutations() -> list[Mutation]:
    """Those of every folder of tests, in order."""
    found = []
    for path in sorted(ROOT.glob("tests/*/mutations.py")):
        package = path.parent.name
        for file, original, mutated, wrong, tests, *excuse in runpy.run_path(str(path))[
            "MUTATIONS"
        ]:
            below = tuple(posixpath.normpath(f"tests/{package}/{one}") for one in tests.split())
            code = f"jaxmethods/{package}/{file}"
            found.append(Mutation(code, original, mutated, wrong, below, *excuse))
    return found


def mutate(mutation: Mutation) -> str:
    """The text of the mutated file. Raises `ValueError` where there is no such mutation."""
    text = (ROOT / mutation.file).read_text()
    count = text.count(mutation.original)
    if count != 1:
        raise ValueError(f"{mutation.original!r} occurs {count} times, expected once")
    mutated = text.replace(mutation.original, mutation.mutated)
    if mutated == text:
        raise ValueError("the mutated text is the original")
    try:
        compile(mutated, mutation.file, "exec")
    except SyntaxError as error:
        raise ValueError(f"the mutated text is not Python ({error})") from error
    for test in mutation.tests:
        if not (ROOT / test.split("::")[0]).exists():
            raise ValueError(f"there is no {test}")
    return mutated


def judge(mutation: Mutation, unmutated: bool = True) -> Outcome:
    """Runs a mutation's tests with it, and before that (`unmutated`) without it."""
    try:
        text = mutate(mutation)
    except ValueError as error:
        return Outcome("invalid", str(error))
    if unmutated and (broken := fails_unmutated(mutation.tests)):
        return Outcome("invalid", broken)
    with copy_of_the_project() as folder:
        (folder / mutation.file).write_text(text)
        return _outcome(*_run(folder, mutation.tests))


@functools.cache
def fails_unmutated(tests: tuple[str, ...]) -> str:
    """What is wrong with tests of the code as it is; empty if they pass."""
    with copy_of_the_project() as folder:
        code, output = _run(folder, tests)
    return f"without it: {_first_failure(output)}" if code else ""


@contextmanager
def copy_of_the_project() -> Iterator[Path]:
    """A folder with the package and its tests, and links to everything else."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as name:
        for path in ROOT.iterdir():
            if path.name in ("jaxmethods", "tests"):
                shutil.copytree(path, Path(name, path.name))
            elif not path.name.startswith("."):
                Path(name, path.name).symlink_to(path)
        yield Path(name)


def _run(folder: Path, tests: Sequence[str]) -> tuple[int | None, str]:
    """Exit code of pytest (None: it took too long) and what it printed."""
    own = {"PYTHONPATH": str(folder)}
    try:
        done = subprocess.run(
            [sys.executable, *PYTEST, *tests],
            cwd=folder,
            env=os.environ | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        return None, (error.stdout or b"").decode(errors="replace")
    return done.returncode, done.stdout.decode(errors="replace")


def _outcome(code: int | None, output: str) -> Outcome:
    if code is None:
        return Outcome("killed", f"still running after {TIMEOUT} s")
    if code == 0:
        return Outcome("survived")
    if code in NO_SUCH_TEST:
        return Outcome("invalid", "there is no such test")
    failure = _first_failure(output)
    # An unknown name fails every test without computing anything wrong.
    unknown = re.search(r"^E +(NameError|ImportError|ModuleNotFoundError).*", output, re.MULTILINE)
    if code != FAILED or unknown:
        return Outcome("invalid", f"did not import or run: {unknown[0] if unknown else failure}")
    return Outcome("killed", failure)


def _first_failure(output: str) -> str:
    found = re.search(r"^(FAILED|ERROR) (\S+)", output, re.MULTILINE)
    return found[2] if found else " ".join(output.split())[-300:]


def main(words: Sequence[str]) -> int:
    """Judges and prints; 0 if all mutations were killed or are excused."""
    unmutated = "--only-mutated" not in words
    words = [word for word in words if word != "--only-mutated"]
    chosen = [m for m in all_mutations() if all(word in " ".join(map(str, m)) for word in words)]
    counts, bad = {"killed": 0, "survived": 0, "invalid": 0}, 0
    for mutation in chosen:
        start = time.monotonic()
        outcome = judge(mutation, unmutated)
        counts[outcome.kind] += 1
        bad += outcome.kind == "invalid" or (outcome.kind == "survived") != bool(mutation.excuse)
        detail = outcome.detail or mutation.excuse
        took = f"{time.monotonic() - start:4.0f} s"
        print(f"{outcome.kind:8} {took}  {mutation}  [{detail}]", flush=True)
    print(", ".join(f"{number} {kind}" for kind, number in counts.items()))
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
