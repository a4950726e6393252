"""What a run asks: questions of a folder or of the generated world, and what models are shown."""

from __future__ import annotations

import atexit
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jaxmethods import sql
from jaxmethods.files import is_file
from jaxmethods.kid.config import DataConfig, DistillRun
from jaxmethods.kid.world import Sizes, write_world
from jaxmethods.sql.execution import SqlError
from jaxmethods.sql.readers import Example
from jaxmethods.sql.serialization import comments_of

HELD_OUT = "held_out"
WORLD_SPLITS = ("same", "combine", "unseen")
TABLES = ("tables.json", "dev_tables.json", "train_tables.json")


def judged_splits(data: DataConfig) -> tuple[str, ...]:
    """The splits that models are judged on, the first of them the most important."""
    usual = ("dev",) if data.path is not None else WORLD_SPLITS
    splits = data.judged or usual
    return (HELD_OUT, *splits) if data.hold_out else splits


class Splits(NamedTuple):
    """Questions of a run."""

    train: list[Example]
    """What is trained on: without what is held out."""
    judged: dict[str, list[Example]]
    """The most important split first. The training split, where it is judged, is `train`."""


class Questions:
    """Questions and databases of one folder."""

    def __init__(self, run: DistillRun, folder: Path):
        """Reads nothing yet.

        Args:
            run: says which splits, and how prompts are written.
            folder: in the layout that the run names.
        """
        self.run, self.data, self.folder = run, run.data, folder
        self.splits = cache(self._splits)
        self.tables = cache(self._tables)
        self.executor = cache(self._executor)
        self.schema = cache(self._read_schema)

    def check(self) -> None:
        """Raises `SqlError` for files, rows and databases that can't be used."""
        train, judged = self.splits()
        for database in {one.database for own in (train, *judged.values()) for one in own}:
            self.schema(database)

    def judge(self) -> sql.Judge:
        """What says which answers are right."""
        return sql.Judge(self.executor(), tables=self.tables())

    def prompts(self, examples: Sequence[Example]) -> list[str]:
        """What a model is asked to go on from."""
        return [self._prompt(example) for example in examples]

    def describe(self, databases: Sequence[Path]) -> list[str]:
        """The schemas of databases, as prompts show them."""
        return [self._schema_text(path, path.stem) for path in databases]

    def _prompt(self, example: Example) -> str:
        schema = self._schema_text(example.database, example.database_id)
        if self.data.prompt == "compact":
            return f"{schema}\n{example.text}\n"
        executor = self.executor()
        found = sql.match_contents(
            executor, example.database, self.schema(example.database), example.text
        )
        return sql.build_prompt(schema, example.text, found)

    def _schema_text(self, database: Path, name: str) -> str:
        schema = self.schema(database)
        if self.data.prompt == "compact":
            return sql.compact_schema(schema)
        record = self.tables().get(name)
        return sql.schema_sequence(schema, None if record is None else comments_of(record))

    def _read_schema(self, database: Path) -> sql.Schema:
        return sql.read_schema(self.executor(), database)

    def _executor(self) -> sql.Executor:
        executor = sql.Executor(sql.Limits(seconds=self.run.evaluation.seconds))
        atexit.register(executor.close)
        return executor

    def _tables(self) -> dict[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        for name in TABLES:
            if is_file(self.folder / name):
                found |= sql.read_tables(self.folder / name)
        return found

    def _splits(self) -> Splits:
        train = self._read(self.data.train)
        held: list[Example] = []
        if self.data.hold_out:
            train, held = hold_out(train, self.data.hold_out, self.run.seed)
        known = {self.data.train: train} | ({HELD_OUT: held} if held else {})
        judged = {}
        for name in judged_splits(self.data):
            examples = known[name] if name in known else self._read(name)
            judged[name] = examples[: self.run.evaluation.questions]
        return Splits(train, judged)

    def _read(self, split: str) -> list[Example]:
        if self.data.layout == "bird":
            return sql.read_bird(self.folder, split, evidence=self.data.evidence)
        return sql.read_spider(self.folder, split)


def hold_out(
    examples: Sequence[Example], share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Sets questions aside whose query stays in training with another question.

    Args:
        examples: to be trained on.
        share: of them that is set aside.
        seed: of the choice.

    Returns:
        Those that stay and those that are set aside, both in their order.

    Raises:
        SqlError: not enough queries are asked for twice.
    """
    groups = defaultdict(list)
    for place, example in enumerate(examples):
        groups[example.database_id, example.query].append(place)
    chance = random.Random(seed)
    free = []
    for places in groups.values():
        chance.shuffle(places)
        free += places[1:]
    number = round(share * len(examples))
    if not 0 < number <= len(free):
        raise SqlError(
            f"data.hold_out: expected a share of 1 to {len(free)} of {len(examples)} questions, as "
            f"many as have the query of another one, got {number}"
        )
    aside = set(chance.sample(free, number))
    pairs = [(place in aside, example) for place, example in enumerate(examples)]
    return [x for out, x in pairs if not out], [x for out, x in pairs if out]


def write_questions(run: DistillRun, path: Path) -> dict[str, float]:
    """Writes the generated world; returns how many questions each split has.

    Raises:
        SqlError: more questions are asked for than the world has.
    """
    world = run.data.world
    sizes = Sizes(world.train, world.same, world.combine, world.unseen)
    try:
        counts = write_world(path, world.seed, sizes, world.databases, world.shapes)
    except ValueError as error:
        raise SqlError(f"data.world: {error}") from error
    return {f"questions_{name}": float(number) for name, number in counts.items()}
