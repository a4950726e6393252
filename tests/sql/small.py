"""A small database for tests, and the texts of others where they are."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("JAXMETHODS_SHARED", "/nowhere"))
TEXT2SQL = SHARED / "data" / "text2sql"
needs_text2sql = pytest.mark.skipif(
    not TEXT2SQL.is_dir(), reason="needs data/text2sql in the folder JAXMETHODS_SHARED"
)

SCRIPT = """
CREATE TABLE team (team_id INTEGER PRIMARY KEY, name TEXT, city TEXT);
CREATE TABLE player (
  player_id INTEGER PRIMARY KEY, name TEXT, goals INTEGER, weight REAL, team_id INTEGER,
  FOREIGN KEY (team_id) REFERENCES team (team_id));
INSERT INTO team VALUES (1, 'Lions', 'Rome'), (2, 'Bears', 'Oslo'), (3, 'Owls', NULL);
INSERT INTO player VALUES (1, 'Ana', 3, 60.5, 1), (2, 'Bo', 3, 70, 1), (3, 'Cy', 7, NULL, 2),
  (4, 'Di', NULL, 55, 2), (5, 'Ana', 0, 61, 3);
"""


def make_database(path: Path, script: str = SCRIPT) -> Path:
    """Writes a database file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    return path
