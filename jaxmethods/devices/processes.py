"""One run over several processes: who they are, who writes, and how they stay in step.

Every process runs the same program on its own devices. Process 0 alone writes and prints;
whatever only one process can know (a refused folder, a signal) is shared before anybody acts
on it, so that all go on or all end alike. In a run of one process nothing here does anything.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxmethods.errors import UserError

ADDRESS = "JAX_COORDINATOR_ADDRESS"
PROCESSES = "JAX_NUM_PROCESSES"
PROCESS = "JAX_PROCESS_ID"
HEARTBEAT_SECONDS = "JAXMETHODS_HEARTBEAT_SECONDS"
"""How long a process may be silent before the others give it up."""

PACKED_BYTES = 1000
"""Room for an error on its way to the other processes."""
T = TypeVar("T")


class DistributedError(UserError):
    """The processes cannot find each other."""


class ElsewhereError(UserError):
    """What made another process of the run stop; ends this one with the same code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def initialize(environment: Mapping[str, str] = os.environ) -> None:
    """Joins the other processes of the run; nothing may have touched a device yet.

    `JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`
    are taken from the environment; those that are not set are asked of the cluster (Slurm, Open
    MPI, Kubernetes, Cloud TPU).

    Raises:
        DistributedError: they are malformed, incomplete, or the others don't answer.
    """
    address = environment.get(ADDRESS)
    if address is not None and not re.fullmatch(r".+:\d+", address):
        raise DistributedError(f"{ADDRESS}: expected host:port, got {address!r}")
    processes = _count(environment, PROCESSES, at_least=1)
    process = _count(environment, PROCESS, at_least=0)
    if processes is not None and process is not None and process >= processes:
        raise DistributedError(
            f"{PROCESS}: expected less than {PROCESSES} ({processes}), got {process}"
        )
    silence = _count(environment, HEARTBEAT_SECONDS, at_least=1) or 60
    if "JAX_CPU_COLLECTIVES_IMPLEMENTATION" not in environment:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM for itself; the loop agrees on when to stop.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            address,
            processes,
            process,
            heartbeat_timeout_seconds=silence,
            shutdown_timeout_seconds=silence,
        )
    except ValueError as error:
        unset = [name for name in (ADDRESS, PROCESSES, PROCESS) if name not in environment]
        missing = f"{', '.join(unset)} not set, and no cluster found that says what to take"
        raise DistributedError(f"--distributed: {missing if unset else error}") from error
    except RuntimeError as error:
        raise DistributedError(
            f"--distributed: the processes cannot be joined ({str(error).splitlines()[0]})"
        ) from error


def several() -> bool:
    """True in a run of more than one process; touches no device where there is just one."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_writer() -> bool:
    """True in the one process that writes files and prints."""
    return not several() or jax.process_index() == 0


def together(action: Callable[[], T]) -> T:
    """Runs `action` in every process; a `UserError` in one of them ends it in all.

    Every process must come here. The error of the lowest process counts.
    """
    if not several():
        return action()
    result, own = None, None
    try:
        result = action()
    except UserError as error:
        own = error
    outcomes = multihost_utils.process_allgather(_packed(own))
    for process, (code, *message) in enumerate(outcomes):
        if code and own is not None and process == jax.process_index():
            raise own
        if code:
            text = bytes(message).rstrip(b"\0").decode(errors="ignore")
            raise ElsewhereError(f"process {process}: {text}", int(code))
    return cast(T, result)


def agree(value: int) -> int:
    """The largest of what the processes say, the same in all of them."""
    if not several():
        return value
    return int(multihost_utils.process_allgather(np.int32(value)).max())


def check_same(value: object, what: str) -> None:
    """Raises `DistributedError` in every process unless `repr(value)` is the same in all."""
    if not several():
        return
    digest = np.uint32(zlib.crc32(repr(value).encode()))
    if len(np.unique(multihost_utils.process_allgather(digest))) > 1:
        raise DistributedError(f"{what} are not the same in all processes")


@contextmanager
def exit_alone_on_errors() -> Iterator[None]:
    """Exits this process at once on an unexpected error in a run of several.

    The others would be waited for at exit. They notice that this one is gone: their next
    exchange fails, or its heartbeat is missing.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not several():
            raise
        traceback.print_exc()
        print(
            f"jaxmethods: process {jax.process_index()} failed or lost another one; "
            "what was saved before is whole",
            file=sys.stderr,
        )
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _packed(error: UserError | None) -> np.ndarray:
    """[PACKED_BYTES] uint8: the exit code (0: no error), then the message, cut or padded."""
    packed = b"" if error is None else bytes([error.code]) + str(error).encode()
    return np.frombuffer(packed[:PACKED_BYTES].ljust(PACKED_BYTES, b"\0"), np.uint8)


def _count(environment: Mapping[str, str], name: str, at_least: int) -> int | None:
    value = environment.get(name)
    if value is None:
        return None
    if not value.isdigit() or int(value) < at_least:
        raise DistributedError(f"{name}: expected an integer >= {at_least}, got {value!r}")
    return int(value)
