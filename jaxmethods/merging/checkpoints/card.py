"""README.md of a merged checkpoint: what was merged, how, and hashes to know the inputs by."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml

from jaxmethods.files import sha256
from jaxmethods.merging.checkpoints.inputs import Inputs
from jaxmethods.models.hub.folders import Folder

Hashes = dict[Path, str]
"""File -> SHA-256."""


@contextmanager
def hashing(folders: Sequence[Folder]) -> Iterator[Callable[[], Hashes]]:
    """Hashes the weights beside other work; the function waits for the result."""
    stop = threading.Event()
    files = {stored.file for folder in folders for stored in folder.tensors.values()}
    with ThreadPoolExecutor(1) as worker:
        pending = {file: worker.submit(sha256, file, stop.is_set) for file in sorted(files)}
        try:
            yield lambda: {file: future.result() for file, future in pending.items()}
        finally:
            stop.set()


def describe(inputs: Inputs, hashes: Hashes) -> str:
    """The card, Markdown with the hub's header."""
    config = inputs.config
    plain = config.model_dump(mode="json", exclude_none=True, exclude={"card", "method", "seed"})
    settings = {name: value for name, value in config.settings.items() if value is not None}
    given = {"method": "merge"} | plain | settings
    rerun = yaml.safe_dump(given, sort_keys=False, default_flow_style=None, width=100)
    merged = len(inputs.merged) + len(inputs.tied)
    kept = len(inputs.base.tensors) - merged
    lines = [
        "---",
        "library_name: transformers",
        "tags: [merge]",
        "---",
        f"# Merged by {config.declaration.title}{_paper(config.declaration.paper)}",
        "",
        f"{merged} tensors are merged, {kept} are the base's. Made by jaxmethods "
        f"{_version()}; `jaxmethods run` makes it again from this config:",
        "",
        "```yaml",
        rerun.rstrip(),
        "```",
        "",
        "| | weights | SHA-256 |",
        "| --- | --- | --- |",
    ]
    roles = ["base", *(f"expert {number}" for number in range(len(inputs.experts)))]
    for role, folder in zip(roles, inputs.sources(), strict=True):
        for file in sorted({stored.file for stored in folder.tensors.values()}):
            lines.append(f"| {role} | `{file}` | `{hashes[file]}` |")
    return "\n".join(lines) + "\n"


def _paper(number: str) -> str:
    return f" (arXiv {number})" if number else ""


def _version() -> str:
    try:
        return version("jaxmethods")
    except PackageNotFoundError:
        return "from a checkout"
