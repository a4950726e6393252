"""SIGINT and SIGTERM ask a run to stop where everything worth keeping is saved."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxmethods.devices import processes as distributed
from jaxmethods.errors import UserError

SOON = (
    "\njaxmethods: {}: will stop and save when what is under way (compiling, a chunk of steps) is "
    "done; Ctrl-C now stops at once, and keeps what was saved before\n"
)


class Interrupted(UserError):
    """SIGINT or SIGTERM asked the run to stop; everything worth keeping is saved."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.code = 128 + signal_number


class Stop:
    """The number of the signal that asked to stop, if one did."""

    signal_number: int | None = None

    def agreed(self) -> int | None:
        """The same in all processes: a signal to one of them stops all."""
        return distributed.agree(self.signal_number or 0) or None


@contextmanager
def stop_requested() -> Iterator[Stop]:
    """Turns the first SIGINT or SIGTERM into a request; a second SIGINT interrupts at once."""
    stop = Stop()

    def request(signal_number: int, frame: Any) -> None:
        del frame
        stop.signal_number = signal_number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Not `print`: the signal may have come in the middle of one.
        os.write(2, SOON.format(signal.Signals(signal_number).name).encode())

    try:
        before = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: the caller handles signals
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
