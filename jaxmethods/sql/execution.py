"""Queries of strangers, run in worker processes on databases that stay what they are.

    with Executor(Limits(seconds=5)) as executor:
        result = executor.execute("geo.sqlite", "SELECT capital FROM state WHERE area > 1000")
        result.status, result.rows

Whatever a query does, there is a `Result` within its seconds and one more: a worker that doesn't
answer is ended and replaced. What is "ok" has rows; every other status says why there are none.
Results that are asked for again are kept where `cached` says so (gold queries, say).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import struct
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

from jaxmethods.errors import UserError

WORKER = Path(__file__).with_name("worker.py")
PATIENCE = 0.7
"""Seconds beyond its limit after which a worker is ended."""
START = 30.0
"""Seconds within which a worker must have started."""
KEPT_CELLS = 5_000_000
"""Cells of all results that are kept."""

Found = TypeVar("Found")
Status: TypeAlias = Literal[
    "ok",
    "error",
    "refused",
    "timeout",
    "row_limit",
    "size_limit",
    "no_database",
    "bad_database",
    "locked",
    "crashed",
]
"""`error`: SQLite doesn't understand the query. `refused`: it wants more than to read, or is two
statements. `locked`: the database is being written. `crashed`: the worker died of it."""


class SqlError(UserError):
    """A database, a file of questions or a SQLite that can't be used."""


class Limits(NamedTuple):
    """What a query may take; hashable."""

    seconds: float = 30.0
    rows: int = 100_000
    bytes: int = 200_000_000
    """All texts and blobs of a result together."""
    value_bytes: int = 10_000_000
    """One text or blob, at any time of the query."""
    memory: int = 500_000_000
    """Bytes that SQLite may hold."""


DEFAULT_LIMITS = Limits()


class Result(NamedTuple):
    """What became of a query."""

    status: Status
    rows: tuple[tuple[Any, ...], ...] = ()
    columns: tuple[str, ...] = ()
    message: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether there are rows to look at (perhaps none)."""
        return self.status == "ok"


class Executor:
    """A pool of worker processes, which are there until `close`."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS, workers: int | None = None) -> None:
        """Starts one worker, and further ones when they are needed.

        Args:
            limits: of every query.
            workers: processes at the most; default: the processors that this process may use.

        Raises:
            SqlError: a limit that isn't positive; no worker starts.
        """
        for name, value in limits._asdict().items():
            if not value > 0:
                raise SqlError(f"limits.{name}: expected a positive number, got {value}")
        count = workers or _processors()
        if count < 1:
            raise SqlError(f"workers: expected at least 1, got {workers}")
        self.limits = limits
        self._idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(count):
            self._idle.put(None)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="sql")
        self._kept: OrderedDict[tuple[Any, ...], Result] = OrderedDict()
        self._cells = 0
        self._lock = threading.Lock()
        self._here = threading.local()
        self._processes: set[_Process] = set()
        self._closed = False
        try:
            found = self._ask({"action": "probe"}, START)
            if found["status"] != "ok":
                raise SqlError(f"sqlite: no worker process starts ({found['message']})")
        except BaseException:
            self.close()
            raise
        self.sqlite_version: str = found["sqlite"]
        self.double_quotes: bool = found["double_quotes"]

    def require_double_quotes(self) -> None:
        """Raises `SqlError` where SQLite reads "texas" as a column only.

        Spider's gold queries write texts in double quotes; SQLite can be built to refuse them.
        """
        if not self.double_quotes:
            raise SqlError(
                f"sqlite {self.sqlite_version}: is built without double-quoted literals, which "
                'gold queries need (state_name = "texas"); use another build (SQLITE_DQS=3), or '
                "Python 3.12, which can switch them on"
            )

    def execute(self, database: str | Path, sql: str, *, cached: bool = False) -> Result:
        """Runs one query.

        Args:
            database: path of a SQLite file.
            sql: one SELECT; anything else is a status.
            cached: keep the result, and use the one that is kept of this file as it is now. Only
                those are kept that the query itself decides: not a timeout, not a lock.

        Returns:
            its result; no query raises.
        """
        where = str(database)
        request = {"action": "query", "database": where, "sql": sql}
        if not cached:
            return self._result(request)
        try:
            found = os.stat(where)
        except (OSError, ValueError):  # the worker says why
            return self._result(request)
        key = (where, found.st_ino, found.st_size, found.st_mtime_ns, sql)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        result = self._result(request)
        if result.status in ("ok", "error", "refused"):
            self._keep(key, result)
        return result

    def execute_many(
        self, queries: Sequence[tuple[str | Path, str]], *, cached: bool = False
    ) -> list[Result]:
        """Runs (database, query) pairs side by side; results are in their order."""
        return self.each(lambda *pair: self.execute(*pair, cached=cached), queries)

    def each(
        self, function: Callable[..., Found], arguments: Iterable[tuple[Any, ...]]
    ) -> list[Found]:
        """Calls a function that executes queries once for each tuple of arguments, side by side.

        A function that does the same itself does it in turn: its thread would wait for others that
        wait as well.
        """
        if getattr(self._here, "inside", False):
            return [function(*given) for given in arguments]

        def call(given: tuple[Any, ...]) -> Found:
            self._here.inside = True
            return function(*given)

        return list(self._threads.map(call, arguments))

    def plan(self, database: str | Path, sql: str) -> Result:
        """What SQLite would do (`EXPLAIN QUERY PLAN`): whether it understands a query."""
        return self.execute(database, f"EXPLAIN QUERY PLAN {sql}")

    def describe(self, database: str | Path, values: int = 2) -> list[Any]:
        """Tables of a database as [name, [[column, type, key, values], ...], foreign keys].

        Raises:
            SqlError: it can't be read.
        """
        request = {"action": "describe", "database": str(database), "values": values}
        answer = self._ask(request, self.limits.seconds)
        if answer["status"] != "ok":
            raise SqlError(f"database {database}: {answer['message']}")
        return answer["tables"]

    def close(self) -> None:
        """Ends all workers; those that run queries, too."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in list(self._processes):
            process.end()

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()

    def _keep(self, key: tuple[Any, ...], result: Result) -> None:
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = result
            self._cells += _cells(result)
            while self._cells > KEPT_CELLS:
                self._cells -= _cells(self._kept.popitem(last=False)[1])

    def _result(self, request: dict[str, Any]) -> Result:
        begun = time.monotonic()
        answer = self._ask(request, self.limits.seconds)
        rows = tuple(tuple(map(_cell, row)) for row in answer.get("rows", ()))
        return Result(
            status=answer["status"],
            rows=rows,
            columns=tuple(answer.get("columns", ())),
            message=answer.get("message", ""),
            seconds=time.monotonic() - begun,
        )

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The answer of an idle worker; a dead one is replaced by the next request."""
        if self._closed:
            raise SqlError("executor: is closed")
        process = self._idle.get()
        try:
            if process is None or not process.alive:
                process = _Process()
                self._processes.add(process)
            answer = process.ask(request | {"limits": self.limits._asdict()}, seconds + PATIENCE)
        except OSError as error:
            answer = {"status": "crashed", "message": f"no worker process ({error.strerror})"}
        finally:
            if process is not None and (self._closed or not process.alive):
                process.end()
                self._processes.discard(process)
                process = None
            self._idle.put(process)
        return answer


class _Process:
    """A worker process and its pipes."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", str(WORKER)]
        self.process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.requests, self.answers = self.process.stdin, self.process.stdout
        self.alive = True
        self.fresh = True

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Sends a request and waits for its answer."""
        data = json.dumps(request).encode("ascii")
        deadline = time.monotonic() + seconds + (START if self.fresh else 0)
        try:
            self.requests.write(struct.pack("<Q", len(data)) + data)
            head = self._read(8, deadline)
            body = self._read(struct.unpack("<Q", head)[0], deadline)
        except TimeoutError:
            self.end()
            return {"status": "timeout", "message": "the worker did not answer and was ended"}
        except (EOFError, OSError):
            self.end()
            # The alarm of the worker ends a query that SQLite can't interrupt.
            if self.process.returncode == -14:
                return {"status": "timeout", "message": "the worker ended itself"}
            code = self.process.returncode
            return {"status": "crashed", "message": f"the worker died (exit code {code})"}
        self.fresh = False
        return json.loads(body)

    def end(self) -> None:
        """Ends the process, at once and for good."""
        self.alive = False
        self.process.kill()
        for pipe in (self.requests, self.answers):
            with contextlib.suppress(OSError):
                pipe.close()
        self.process.wait()

    def _read(self, size: int, deadline: float) -> bytes:
        found = bytearray()
        descriptor = self.answers.fileno()
        while len(found) < size:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise TimeoutError
            part = os.read(descriptor, min(1 << 20, size - len(found)))
            if not part:
                raise EOFError
            found += part
        return bytes(found)


def _processors() -> int:
    """Processors that this process may use, where the system says so; else all of them."""
    ask = getattr(os, "sched_getaffinity", None)
    return len(ask(0)) if ask else os.cpu_count() or 1


def _cell(value: Any) -> Any:
    return bytes.fromhex(value["b"]) if isinstance(value, dict) else value


def _cells(result: Result) -> int:
    return 1 + len(result.rows) * max(1, len(result.columns))
