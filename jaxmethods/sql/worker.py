"""The program of a worker process: runs one query after another on read-only databases.

It needs the standard library only and is started by the path of this file, so that a worker is
there in some hundredths of a second and a query that kills it kills nothing else. Requests and
answers are JSON behind their length of 8 bytes, on standard input and output.

What keeps a query in its place, from the inside out: an authorizer that allows reading and nothing
else; limits of SQLite on the size of a value, on memory and on time; a database that is opened
read-only; a process that may not write files, with an alarm that ends it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import stat
import struct
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

OPEN = 8
"""Databases that are kept open."""
PROGRESS = 2000
"""Instructions of SQLite's machine between two looks at the clock: some tens of microseconds."""
ROWS_AT_ONCE = 256
GRACE = 0.4
"""Seconds after the limit at which the alarm ends a worker that SQLite doesn't let go."""
ALLOWED = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}
REFUSED_FUNCTIONS = {"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer"}
JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
WAL_FORMAT = 2

Answer = dict[str, Any]
Fingerprint = tuple[int, int, int]


class Refusal(Exception):
    """A database that isn't opened; its arguments are a status and a message."""


def authorize(action: int, first: Any, second: Any, database: Any, trigger: Any) -> int:
    """SQLite's authorizer: allows what a SELECT needs.

    Args:
        action: what the query wants to do, one of SQLite's codes.
        first, second: what it is done to; `second` is a function's name.
        database, trigger: not read.

    Returns:
        `SQLITE_OK` or `SQLITE_DENY`.
    """
    del first, database, trigger
    function = action == sqlite3.SQLITE_FUNCTION
    if action not in ALLOWED or (function and str(second).lower() in REFUSED_FUNCTIONS):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def fingerprint(path: str) -> Fingerprint:
    """What changes when a database is written."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise Refusal("no_database", f"cannot be opened ({error.strerror})") from error
    if not stat.S_ISREG(found.st_mode):
        raise Refusal("no_database", "is no file")
    return found.st_ino, found.st_size, found.st_mtime_ns


def being_written(path: str) -> bool:
    """Whether a transaction's journal lies beside the database: its pages aren't all in it."""
    try:
        with open(f"{path}-journal", "rb") as journal:
            if journal.read(len(JOURNAL_MAGIC)) == JOURNAL_MAGIC:
                return True
    except OSError:
        pass
    try:
        return os.path.getsize(f"{path}-wal") > 0
    except OSError:
        return False


def connect(path: str, limits: dict[str, Any]) -> sqlite3.Connection:
    """A read-only connection that knows no more than SELECT."""
    if being_written(path):
        raise Refusal("locked", "is being written (its journal isn't empty)")
    try:
        with open(path, "rb") as file:
            head = file.read(20)
    except OSError as error:
        raise Refusal("no_database", f"cannot be opened ({error.strerror})") from error
    if not head:
        raise Refusal("bad_database", "is empty")
    # A database in WAL mode makes files beside it where even a reader opens it; whole as it is, it
    # is read as one that nobody writes. All others are locked while they are read.
    whole = len(head) == 20 and head[18] == WAL_FORMAT
    mode = "immutable=1" if whole else "mode=ro"
    uri = f"{Path(os.path.abspath(path)).as_uri()}?{mode}"
    wait = min(0.5, limits["seconds"] / 2)
    connection = sqlite3.connect(uri, uri=True, timeout=wait, isolation_level=None)
    connection.text_factory = lambda text: text.decode(errors="ignore")
    for pragma in (
        f"hard_heap_limit={limits['memory']}",
        "query_only=ON",
        "trusted_schema=OFF",
        "cell_size_check=ON",
        "temp_store=MEMORY",
        "mmap_size=0",
    ):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    accept_double_quotes(connection)
    for limit, value in (
        (sqlite3.SQLITE_LIMIT_LENGTH, limits["value_bytes"]),
        (sqlite3.SQLITE_LIMIT_SQL_LENGTH, 1_000_000),
        (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
        (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1000),
        (sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0),
    ):
        connection.setlimit(limit, value)
    connection.set_authorizer(authorize)
    return connection


def accept_double_quotes(connection: sqlite3.Connection) -> None:
    """Asks for "texas" to be a text where it is no column (Python 3.12; others: as built)."""
    if sys.version_info >= (3, 12):
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_DQS_DML, True)


def status_of(error: Exception) -> str:
    """The class of an error."""
    name = getattr(error, "sqlite_errorname", "") or ""
    for begin, status in (
        ("SQLITE_INTERRUPT", "timeout"),
        ("SQLITE_BUSY", "locked"),
        ("SQLITE_LOCKED", "locked"),
        ("SQLITE_READONLY_ROLLBACK", "locked"),
        ("SQLITE_AUTH", "refused"),
        ("SQLITE_READONLY", "refused"),
        ("SQLITE_CORRUPT", "bad_database"),
        ("SQLITE_NOTADB", "bad_database"),
        ("SQLITE_CANTOPEN", "no_database"),
        ("SQLITE_IOERR", "bad_database"),
        ("SQLITE_TOOBIG", "size_limit"),
        ("SQLITE_NOMEM", "size_limit"),
    ):
        if name.startswith(begin):
            return status
    text = str(error)
    if isinstance(error, MemoryError):
        return "size_limit"
    if "prohibited" in text or "not authorized" in text:
        return "refused"
    return "refused" if "one statement" in text else "error"


def plain(value: Any) -> Any:
    """A cell as JSON holds it."""
    return {"b": value.hex()} if isinstance(value, bytes) else value


def weight(row: tuple[Any, ...]) -> int:
    """About how many bytes a row takes."""
    return sum(len(cell) if isinstance(cell, str | bytes) else 8 for cell in row)


def fetch(connection: sqlite3.Connection, sql: str, limits: dict[str, Any]) -> Answer:
    """Runs one statement and reads its rows, up to the limits."""
    cursor = connection.execute(sql)
    try:
        if cursor.description is None:
            return {"status": "error", "message": "no query: the text holds no SELECT"}
        rows: list[tuple[Any, ...]] = []
        size = 0
        while found := cursor.fetchmany(ROWS_AT_ONCE):
            rows += found
            size += sum(map(weight, found))
            if len(rows) > limits["rows"]:
                return {"status": "row_limit", "message": f"more than {limits['rows']} rows"}
            if size > limits["bytes"]:
                return {"status": "size_limit", "message": f"more than {limits['bytes']} bytes"}
        columns = [column[0] for column in cursor.description]
        return {
            "status": "ok",
            "columns": columns,
            "rows": [[plain(cell) for cell in row] for row in rows],
        }
    finally:
        cursor.close()


def quoted(name: str) -> str:
    """An identifier in SQL."""
    return '"' + name.replace('"', '""') + '"'


def describe(connection: sqlite3.Connection, values: int) -> Answer:
    """Tables, columns, keys and up to `values` distinct values of each column."""
    connection.set_authorizer(None)
    try:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        tables = []
        for (table,) in names.fetchall():
            columns = []
            listed = connection.execute(f"PRAGMA table_info({quoted(table)})").fetchall()
            for _, name, kind, _, _, key in listed:
                column, place = quoted(name), quoted(table)
                found = connection.execute(
                    f"SELECT DISTINCT {column} FROM {place} WHERE {column} IS NOT NULL LIMIT ?",
                    (values,),
                ).fetchall()
                columns.append([name, kind, key, [plain(value) for (value,) in found]])
            keys = connection.execute(f"PRAGMA foreign_key_list({quoted(table)})").fetchall()
            tables.append([table, columns, [[key[3], key[2], key[4]] for key in keys]])
        return {"status": "ok", "tables": tables}
    finally:
        connection.set_authorizer(authorize)


class Worker:
    """Databases that are open, and the clock of the query that runs."""

    def __init__(self) -> None:
        self.open: dict[str, tuple[Fingerprint, int, sqlite3.Connection]] = {}

    def connection(self, path: str, limits: dict[str, Any]) -> sqlite3.Connection:
        """An open connection, of the file as it is now."""
        now = fingerprint(path)
        if path in self.open:
            before, heap, connection = self.open.pop(path)
            if before == now and heap == limits["memory"] and not being_written(path):
                self.open[path] = before, heap, connection
                return connection
            connection.close()
        connection = connect(path, limits)
        self.open[path] = now, limits["memory"], connection
        if len(self.open) > OPEN:
            oldest = next(iter(self.open))
            self.open.pop(oldest)[2].close()
        return connection

    def run(self, request: dict[str, Any]) -> Answer:
        """Answers a request; never raises."""
        path, limits = request["database"], request["limits"]
        deadline = time.monotonic() + limits["seconds"]
        signal.setitimer(signal.ITIMER_REAL, limits["seconds"] + GRACE)
        connection = None
        try:
            before = fingerprint(path)
            connection = self.connection(path, limits)
            connection.set_progress_handler(lambda: time.monotonic() > deadline, PROGRESS)
            if request["action"] == "describe":
                answer = describe(connection, request["values"])
            else:
                answer = fetch(connection, request["sql"], limits)
            if before != fingerprint(path):
                return {"status": "locked", "message": "was written while it was read"}
            return answer
        except Refusal as refusal:
            return {"status": refusal.args[0], "message": refusal.args[1]}
        except Exception as error:
            return {"status": status_of(error), "message": str(error)[:300]}
        finally:
            if connection is not None:
                connection.set_progress_handler(None, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)


def probe() -> Answer:
    """Which SQLite this is, and whether "x" is a text where there is no column x."""
    connection = sqlite3.connect(":memory:")
    accept_double_quotes(connection)
    try:
        literal = connection.execute('SELECT "x"').fetchone() == ("x",)
    except sqlite3.Error:
        literal = False
    connection.close()
    return {"status": "ok", "sqlite": sqlite3.sqlite_version, "double_quotes": literal}


def read_frame(stream: BinaryIO) -> Any:
    """The next message, None where there is no more."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    return json.loads(stream.read(struct.unpack("<Q", head)[0]))


def write_frame(stream: BinaryIO, message: Any) -> None:
    """Sends a message."""
    data = json.dumps(message).encode("ascii")
    stream.write(struct.pack("<Q", len(data)) + data)
    stream.flush()


def main() -> None:
    """Answers until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers itself
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    worker = Worker()
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while (request := read_frame(requests)) is not None:
        answer = probe() if request["action"] == "probe" else worker.run(request)
        write_frame(answers, answer)


if __name__ == "__main__":
    main()
