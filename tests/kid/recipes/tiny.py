"""A config so small that it compiles in seconds, and folders of real data that it can name."""

from __future__ import annotations

import json
from pathlib import Path

from jaxmethods.config import merge
from tests.sql.small import make_database

STUDENT = {"layers": 1, "width": 8, "mlp_width": 8, "heads": 2, "kv_heads": 1}
REPLAY = {"capacity": 4, "validation_rows": 2, "validate_every": 1, "margin": 0.0, "increase": 1.0}
DISTILLM = {"objective": "distillm", "source": {"replay": REPLAY}}
FIT = {"steps": 2, "batch": 4, "learning_rate": 0.05}
VALUES = {
    "method": "kid",
    "data": {
        "world": {
            "databases": 1,
            "shapes": 2,
            "train": 12,
            "same": 3,
            "combine": 2,
            "unseen": 2,
        },
        "vocabulary": 300,
        "max_input": 96,
        "max_output": 16,
    },
    "teacher": {**STUDENT, "fit": FIT},
    "student": STUDENT,
    "fit": FIT,
    "students": ["kid"],
    "evaluation": {"exposure": 0, "rows": 4, "shown": 2},
    "training": {"log_every": 2, "evaluate_every": 2, "checkpoint_every": 2},
}


def values(**changes):
    """The config, changed."""
    return merge(VALUES, changes)


QUESTIONS = [
    ("how many players are there", "SELECT count(*) FROM player"),
    ("what is the number of players", "SELECT count(*) FROM player"),
    ("names of all teams", "SELECT name FROM team"),
    ("list the teams", "SELECT name FROM team"),
    ("players with more than 3 goals", "SELECT name FROM player WHERE goals > 3"),
    ("who has the most goals", "SELECT name FROM player ORDER BY goals DESC LIMIT 1"),
]


def spider(folder: Path, dev=QUESTIONS[:2]) -> Path:
    """A folder in Spider's layout."""
    make_database(folder / "database" / "club" / "club.sqlite")
    for name, questions in (("train", QUESTIONS), ("dev", dev)):
        rows = [{"db_id": "club", "question": q, "query": sql} for q, sql in questions]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder
