"""Checkpoints of one stage: the two newest and the best, each whole or absent.

STEP/default              the state, by orbax
STEP/metrics/metrics      {"score": ...} where the step was scored

What a folder holds is read from the disk every time, and only `save` changes it: any number of
processes may read the checkpoints of a run that trains. A checkpoint appears and goes by a rename.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxmethods import files
from jaxmethods.devices import processes as distributed
from jaxmethods.errors import UserError
from jaxmethods.method import State

STATE, METRICS = "default", "metrics"
UNFINISHED = ".orbax-checkpoint-tmp"
"""In the name of a checkpoint that orbax has not finished."""
FOLDER_ROOM, LEAF_ROOM = 256 * 1024, 8 * 1024
"""Bytes that a checkpoint and each of its arrays take besides the numbers, generously."""


class CheckpointError(UserError):
    """A checkpoint that is damaged, belongs to another program, or cannot be written."""


class Checkpoints:
    """Saves and restores the state of one stage, numbered by step."""

    def __init__(self, folder: Path, scored: bool = False):
        """`scored`: the best checkpoint is kept besides the two newest."""
        self.folder = folder.absolute()
        self.scored = scored
        # All processes of a run must agree on what is saved; a shared disk may show it late.
        self._saved = set(self.steps())
        self._cleared = False
        handlers: dict[str, Any] = {
            STATE: ocp.StandardCheckpointHandler(),
            METRICS: ocp.JsonCheckpointHandler(filename=METRICS),
        }
        self._orbax = ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers))

    def steps(self) -> list[int]:
        """Steps that are on the disk now, in order."""
        try:
            names = [entry.name for entry in self.folder.iterdir() if entry.is_dir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(
                f"checkpoints {self.folder}: cannot be read ({files.reason(error)})"
            ) from error
        return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)

    def latest(self) -> int | None:
        steps = self.steps()
        return steps[-1] if steps else None

    def best(self) -> int | None:
        """The step with the highest finite score; the latest if none has one."""
        steps = self.steps()
        scores = {step: self.score(step) for step in steps}
        scored = [(score, step) for step, score in scores.items() if score is not None]
        if scored:
            return max(scored)[1]
        return steps[-1] if steps else None

    def score(self, step: int) -> float | None:
        """What a step was scored; None where it has no finite score."""
        try:
            score = json.loads((self.path(step) / METRICS / METRICS).read_text(encoding="utf-8"))[
                "score"
            ]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return _finite(score)

    def path(self, step: int) -> Path:
        return self.folder / str(step)

    def save(self, step: int, state: State, score: float | None) -> None:
        """Saves unless this step is saved already.

        Args:
            score: higher is better; None, or one that is not finite: the step is not scored.

        Raises:
            CheckpointError: it cannot be written; those that are there still are.
        """
        if step in self._saved:
            return
        try:
            self._clear_once()
            self._write(step, state, score)
            self._saved.add(step)
            self._remove_old()
        except Exception as error:  # orbax and tensorstore raise many kinds for a full disk
            if distributed.several():
                raise  # the others wait for this process inside of orbax
            self._remove_unfinished()
            last = self.latest()
            kept = "there is no other" if last is None else f"the last one is {self.path(last)}"
            raise CheckpointError(
                f"checkpoint {self.path(step)}: cannot be written ({files.reason(error)}); {kept}"
            ) from error

    def rescore(self, step: int, score: float | None) -> None:
        """Gives a step that was saved without a score the one that it was found to have.

        Raises:
            FileError: it cannot be written.
        """
        if score is None or _finite(score) is None or not distributed.is_writer():
            return
        file = self.path(step) / METRICS / METRICS
        with files.refusals(file):
            file.parent.mkdir(exist_ok=True)
        files.write_atomically(file, json.dumps({"score": float(score)}))

    def restore(self, step: int, like: State) -> State:
        """Restores a step into the structure, shapes, dtypes and shardings of `like`.

        Raises:
            CheckpointError: the checkpoint is damaged or holds something else, if only other types.
        """
        try:
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, {"state": like})
            args = ocp.args.Composite(**{STATE: ocp.args.StandardRestore(abstract)})
            restored = self._orbax.restore(self.path(step), args=args)[STATE]["state"]
            types = self._types(step)
        except Exception as error:  # orbax and tensorstore raise many kinds for a damaged file
            others = [other for other in self.steps() if other != step]
            hint = f"; remove that folder to go on from step {others[-1]}" if others else ""
            raise CheckpointError(
                f"checkpoint {self.path(step)}: cannot be restored ({files.reason(error)}){hint}"
            ) from error

        # Orbax would have converted them, and numbers with them, without a word.
        for path, leaf in jax.tree_util.tree_leaves_with_path({"state": like}):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            found = types.get(name, leaf.dtype)
            if found != leaf.dtype and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                raise CheckpointError(
                    f"checkpoint {self.path(step)}: {name}: expected {leaf.dtype}, got {found}; "
                    "set JAX_ENABLE_X64 as it was when the run began"
                )
        return restored

    def _types(self, step: int) -> dict[str, Any]:
        """Dtypes on the disk, by the names of arrays."""
        items: Any = self._orbax.metadata(self.path(step)).item_metadata
        arrays = jax.tree.leaves(items[STATE].tree, is_leaf=lambda leaf: hasattr(leaf, "dtype"))
        return {array.name: array.dtype for array in arrays if hasattr(array, "dtype")}

    def close(self) -> None:
        self._orbax.close()

    def _write(self, step: int, state: State, score: float | None) -> None:
        # The mapping around it lets a state be a bare array, which orbax would refuse.
        items: dict[str, Any] = {STATE: ocp.args.StandardSave({"state": state})}
        if score is not None and _finite(score) is not None:
            items[METRICS] = ocp.args.JsonSave({"score": float(score)})
        if not distributed.several():
            self._refuse_a_full_disk(state)
        with _quiet_threads():
            self._orbax.save(self.path(step), args=ocp.args.Composite(**items))

    def _refuse_a_full_disk(self, state: State) -> None:
        """Before orbax begins: its threads can't be stopped cleanly where a write of theirs fails.

        Compression is not counted on. A file system that doesn't tell its size is not asked.
        """
        disk = os.statvfs(self.folder)
        leaves = jax.tree.leaves(state)
        needed = sum(leaf.nbytes + LEAF_ROOM for leaf in leaves if hasattr(leaf, "nbytes"))
        if disk.f_blocks and disk.f_bavail * disk.f_frsize < needed + FOLDER_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _clear_once(self) -> None:
        if self._cleared:
            return
        self._cleared = True
        self.folder.mkdir(parents=True, exist_ok=True)
        if distributed.is_writer():
            self._remove_unfinished()
            files.remove_staged(self.folder)

    def _remove_unfinished(self) -> None:
        if self.folder.is_dir():
            for entry in list(self.folder.iterdir()):
                if UNFINISHED in entry.name:
                    files.remove(entry)

    def _remove_old(self) -> None:
        if not distributed.is_writer():
            return
        steps = self.steps()
        kept = {*steps[-2:], *([self.best()] if self.scored else [])}
        for step in steps:
            if step not in kept:
                files.remove(self.path(step))


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """What fails in orbax's threads is raised in ours too: there it would only be printed."""
    log, running, printed = logging.getLogger("absl"), set(threading.enumerate()), io.StringIO()
    before, log.disabled = log.disabled, True
    try:
        with contextlib.redirect_stderr(printed):
            try:
                yield
            except BaseException:
                for thread in set(threading.enumerate()) - running:
                    thread.join(timeout=5.0)
                time.sleep(0.2)  # writes under way come back to an event loop that is gone
                gc.collect()  # a coroutine that was never awaited says so when it is collected
                printed.truncate(0)
                # Its tasks are found to have failed when they are collected, whenever that is.
                logging.getLogger("asyncio").addFilter(_is_not_from_orbax)
                raise
    finally:
        log.disabled = before
        sys.stderr.write(printed.getvalue())


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.getMessage()


def _finite(score: Any) -> float | None:
    return float(score) if isinstance(score, int | float) and math.isfinite(score) else None
