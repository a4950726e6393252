"""No query harms a database, outlives its seconds or raises."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from jaxmethods.sql import Executor, Judge, Limits, SqlError, execution, results_equal
from tests.sql.small import make_database

ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
LIMITS = Limits(seconds=0.5, rows=1000, bytes=10**6, value_bytes=10**6, memory=10**8)
HOSTILE = {
    "DROP TABLE player": "refused",
    "DELETE FROM player": "refused",
    "UPDATE player SET goals = 9": "refused",
    "INSERT INTO team VALUES (9, 'x', 'y')": "refused",
    "CREATE TABLE t (x)": "refused",
    "CREATE TEMP TABLE t (x)": "refused",
    "ATTACH DATABASE '{folder}/other.sqlite' AS other": "refused",
    "VACUUM INTO '{folder}/copy.sqlite'": "refused",
    "PRAGMA query_only = OFF": "refused",
    "PRAGMA journal_mode = WAL": "refused",
    "SELECT * FROM pragma_database_list": "refused",
    "SELECT load_extension('libm.so.6')": "refused",
    "SELECT 1; SELECT 2": "refused",
    "SELECT 1; DROP TABLE player": "refused",
    "BEGIN IMMEDIATE": "refused",
    "ANALYZE": "refused",
    ENDLESS: "timeout",
    "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n": "row_limit",
    "SELECT count(*) FROM " + ", ".join(f"player AS p{n}" for n in range(13)): "timeout",
    "SELECT * FROM " + ", ".join(f"player AS p{n}" for n in range(13)): "row_limit",
    "SELECT zeroblob(1000000000)": "size_limit",
    "SELECT hex(zeroblob(400000)) FROM player": "size_limit",
    "SELECT replace(hex(zeroblob(400000)), '0', hex(zeroblob(1000)))": "size_limit",
    "": "error",
    ";": "error",
    "-- nothing": "error",
    "SELEC 1": "error",
    "SELECT \x00 1": "error",
    "SELECT '\ud800'": "error",
    "SELECT " + "(" * 5000 + "1" + ")" * 5000: "error",
    "SELECT nothing FROM nowhere": "error",
    "SELECT 1 WHERE 'x' LIKE '" + "%a" * 5000 + "'": "error",
}


@pytest.fixture
def strict():
    with Executor(LIMITS, workers=2) as pool:
        yield pool


def hashes(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def runs(pid):
    """Whether a process of this number is there and has not ended."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat")
        return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_hostile_queries_get_a_status_and_leave_the_files_as_they_are(strict, database):
    before = hashes(database.parent)
    for query, status in HOSTILE.items():
        begun = time.monotonic()
        result = strict.execute(database, query.replace("{folder}", str(database.parent)))
        assert result.status == status, (query[:80], result)
        assert result.message
        assert time.monotonic() - begun < LIMITS.seconds + 1
    assert strict.execute(database, "SELECT count(*) FROM player").rows == ((5,),)
    assert hashes(database.parent) == before


def test_a_query_that_sqlite_does_not_interrupt_ends_with_its_worker(strict, database):
    """One call of a function runs for minutes and never looks at the clock."""
    slow = "SELECT trim(hex(zeroblob(400000)), replace(hex(zeroblob(40000)), '0', '1') || '0')"
    begun = time.monotonic()
    result = strict.execute(database, slow)
    assert result.status == "timeout"
    assert time.monotonic() - begun < LIMITS.seconds + 1
    assert strict.execute(database, "SELECT 1").rows == ((1,),)


def test_no_process_is_left(database):
    pool = Executor(Limits(seconds=20), workers=1)
    workers = [process.process.pid for process in pool._processes]
    assert workers
    assert all(map(runs, workers))
    run = f"""
import threading
from jaxmethods.sql import Executor, Limits
pool = Executor(Limits(seconds=1.0), workers=1)
threading.Thread(target=pool.execute, args=({str(database)!r}, {ENDLESS!r})).start()
import time; time.sleep(0.3); print(next(iter(pool._processes)).process.pid, flush=True)
import os; os._exit(1)
"""
    orphan = int(subprocess.run([sys.executable, "-c", run], capture_output=True).stdout)
    pool.close()
    assert not any(map(runs, workers))
    for _ in range(100):
        if not runs(orphan):
            break
        time.sleep(0.05)
    assert not runs(orphan)
    with pytest.raises(SqlError, match="closed"):
        pool.execute(database, "SELECT 1")


def test_databases_that_cannot_be_read(strict, tmp_path, database):
    query = "SELECT count(*) FROM player"
    assert strict.execute(tmp_path / "none.sqlite", query).status == "no_database"
    assert strict.execute(tmp_path, query).status == "no_database"
    assert strict.execute("a\x00b", query, cached=True).status == "error"
    (tmp_path / "empty.sqlite").touch()
    assert strict.execute(tmp_path / "empty.sqlite", query).status == "bad_database"
    (tmp_path / "text.sqlite").write_text("this is no database " * 100)
    assert strict.execute(tmp_path / "text.sqlite", query).status == "bad_database"
    content = bytearray(database.read_bytes())
    content[200:] = bytes(len(content) - 200)
    (tmp_path / "torn.sqlite").write_bytes(content)
    assert strict.execute(tmp_path / "torn.sqlite", query).status in ("bad_database", "error")
    with pytest.raises(SqlError, match=r"none\.sqlite"):
        strict.describe(tmp_path / "none.sqlite")


def test_a_database_that_is_being_written_is_locked_and_then_is_read_anew(strict, tmp_path):
    path = make_database(tmp_path / "club.sqlite")
    query = "SELECT count(*) FROM player"
    assert strict.execute(path, query, cached=True).rows == ((5,),)
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        assert strict.execute(path, query).status == "locked"
        writer.execute("DELETE FROM player WHERE player_id = 1")
        assert strict.execute(path, query).status == "locked"
        writer.execute("COMMIT")
    assert strict.execute(path, query, cached=True).rows == ((4,),)


def test_a_database_in_wal_mode_is_read_without_new_files(strict, tmp_path):
    path = make_database(tmp_path / "club.sqlite")
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
    before = hashes(tmp_path)
    assert strict.execute(path, "SELECT count(*) FROM player").rows == ((5,),)
    assert hashes(tmp_path) == before
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("DELETE FROM player")
        writer.commit()
        assert strict.execute(path, "SELECT count(*) FROM player").status == "locked"


def test_cells_keep_their_types(executor, tmp_path):
    path = tmp_path / "types.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (x)")
        cells = [(1,), (1.5,), ("é",), (b"\x00\xff",), (None,), (2**62,), (float("inf"),)]
        connection.executemany("INSERT INTO t VALUES (?)", cells)
        connection.execute("INSERT INTO t VALUES (CAST(x'61ff62' AS TEXT))")
        connection.commit()
    result = executor.execute(path, "SELECT x AS cell FROM t")
    assert result.rows == (*cells, ("ab",))
    assert result.columns == ("cell",)


def test_results_that_the_query_decides_are_kept(strict, database):
    first = strict.execute(database, "SELECT name FROM team", cached=True)
    assert strict.execute(database, "SELECT name FROM team", cached=True) is first
    assert strict.execute(database, "SELECT name FROM team") is not first
    strict.execute(database, ENDLESS, cached=True)
    assert not any(ENDLESS in key for key in strict._kept)


def test_queries_side_by_side_come_back_in_order_and_may_nest(strict, database):
    queries = [(database, f"SELECT {n}") for n in range(50)]
    assert [result.rows[0][0] for result in strict.execute_many(queries)] == list(range(50))
    nested = strict.each(lambda n: len(strict.execute_many(queries[:n])), [(1,), (2,), (3,)])
    assert nested == [1, 2, 3]


def test_two_failures_are_never_equal(strict, database):
    judge = Judge(strict)
    with pytest.raises(SqlError, match="gold query"):
        judge.execution_match([database], "SELEC 1", "SELEC 1")
    with pytest.raises(SqlError, match="gold query"):
        judge.bird_match(database, "SELEC 1", "SELEC 1")


def test_a_sqlite_without_double_quoted_texts_is_refused(strict):
    assert strict.double_quotes
    strict.double_quotes = False
    with pytest.raises(SqlError, match="double-quoted"):
        Judge(strict)


def test_limits_are_positive():
    with pytest.raises(SqlError, match=r"limits\.rows"):
        Executor(Limits(rows=0))


def test_a_worker_that_cannot_start_is_one_error(monkeypatch, tmp_path):
    monkeypatch.setattr(execution, "WORKER", tmp_path / "no_worker.py")
    with pytest.raises(SqlError, match="no worker process starts"):
        Executor()
    assert results_equal((), (), ordered=True)
