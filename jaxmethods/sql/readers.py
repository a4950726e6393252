"""Questions, schemas and predictions in the layouts of Spider, its variants and BIRD.

Spider, -DK, -Syn and -Realistic: `dev.json` (or `train_spider.json` and `train_others.json`) with
`db_id`, `query` and `question` (`SpiderSynQuestion`), `tables.json`, `database/ID/ID.sqlite`.
BIRD: `dev.json` with `db_id`, `SQL`, `question`, `evidence`, `difficulty`, `dev_tables.json`,
`dev_databases/ID/ID.sqlite`. What isn't of that kind is an error that says which row it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxmethods.files import is_file, refusals
from jaxmethods.sql.execution import SqlError

TRAIN_FILES = ("train_spider.json", "train_others.json")
BIRD_MARK = "\t----- bird -----\t"


class Example(NamedTuple):
    """A question and the query that answers it."""

    id: str
    database_id: str
    database: Path
    question: str
    query: str
    evidence: str = ""
    """What BIRD says besides, "" elsewhere."""
    difficulty: str = ""

    @property
    def text(self) -> str:
        """What a model is asked: evidence, where there is some, and question, on one line."""
        together = f"{self.evidence} {self.question}" if self.evidence else self.question
        return together.replace("\n", " ")


def read_spider(folder: str | Path, split: str = "dev", *, synonyms: bool = True) -> list[Example]:
    """Questions of Spider or one of its variants.

    Args:
        folder: holds `SPLIT.json` and `database/`.
        split: name of the file without its ending; for "train", Spider's two files serve as well.
        synonyms: ask Spider-Syn's own questions where a row has both.

    Returns:
        All questions, in the order of the file.

    Raises:
        SqlError: a file can't be read, holds no question, a row isn't one, a database is missing.
    """
    folder = Path(folder)
    files = [folder / f"{split}.json"]
    if split == "train" and not is_file(files[0]):
        files = [folder / name for name in TRAIN_FILES if is_file(folder / name)] or files
    question = ("SpiderSynQuestion", "question") if synonyms else ("SpiderQuestion", "question")
    databases = folder / "database"
    return [
        _example(file, number, row, databases, "query", question)
        for file in files
        for number, row in enumerate(_rows(file))
    ]


def read_bird(folder: str | Path, split: str = "dev", *, evidence: bool = True) -> list[Example]:
    """Questions of BIRD.

    Args:
        folder: holds `SPLIT.json` and `SPLIT_databases/`.
        split: what these two names begin with.
        evidence: keep what BIRD calls external knowledge.

    Returns:
        All questions, in the order of the file.

    Raises:
        SqlError: as `read_spider`.
    """
    file, databases = Path(folder) / f"{split}.json", Path(folder) / f"{split}_databases"
    examples = [
        _example(file, number, row, databases, "SQL", ("question",))
        for number, row in enumerate(_rows(file))
    ]
    return examples if evidence else [example._replace(evidence="") for example in examples]


def read_tables(path: str | Path) -> dict[str, dict[str, Any]]:
    """Records of `tables.json`, by the ids of their databases.

    Args:
        path: of the file.

    Returns:
        Database id -> its record; `foreign_keys` is an empty list where the file has none.

    Raises:
        SqlError: the file can't be read, or a record lacks a field or points beyond its columns.
    """
    records = {}
    for number, row in enumerate(_rows(Path(path))):
        where = f"tables {path}: row {number}"
        for field in ("column_names_original", "column_names", "table_names_original"):
            if not isinstance(row.get(field), list):
                raise SqlError(f"{where}: {field}: expected a list, got {row.get(field)!r:.60}")
        count = len(row["column_names_original"])
        keys = row.setdefault("foreign_keys", [])
        pairs = isinstance(keys, list) and all(
            isinstance(pair, list) and len(pair) == 2 and all(_is_place(x, count) for x in pair)
            for pair in keys
        )
        if not pairs:
            raise SqlError(f"{where}: foreign_keys: expected pairs of places in {count} columns")
        records[_text(row, ("db_id",), where)] = row
    return records


def read_predictions(path: str | Path) -> list[str]:
    """Predicted queries: one a line (`SQL` or `SQL<TAB>database`), or BIRD's {"0": "SQL...", ...}.

    Args:
        path: of the file, whose first character that isn't space decides between the two layouts.

    Returns:
        Queries without their database's name, in the order of the lines or of the keys.

    Raises:
        SqlError: the file can't be read, or isn't of that kind.
    """
    path = Path(path)
    text = _content(path)
    if not text.lstrip().startswith("{"):
        # A line without a query is an answer too, also behind the last one.
        lines = text.removesuffix("\n").split("\n")
        return [line.split("\t")[0].strip() for line in lines]
    found = _json(path, text)
    try:
        ordered = sorted(found.items(), key=lambda item: int(item[0]))
    except ValueError as error:
        raise SqlError(f"predictions {path}: expected numbers as keys ({error})") from error
    if [int(key) for key, _ in ordered] != list(range(len(ordered))):
        raise SqlError(f"predictions {path}: expected the keys 0 to {len(ordered) - 1}")
    return [str(value).split(BIRD_MARK)[0].strip() for _, value in ordered]


def _example(
    file: Path,
    number: int,
    row: Mapping[str, Any],
    databases: Path,
    query: str,
    question: Sequence[str],
) -> Example:
    where = f"questions {file}: row {number}"
    database = _text(row, ("db_id",), where)
    path = databases / database / f"{database}.sqlite"
    if Path(database).name != database or not is_file(path):
        raise SqlError(f"{where}: db_id {database!r}: there is no {path}")
    optional = {name: row.get(name) for name in ("evidence", "difficulty")}
    return Example(
        id=f"{file.stem}-{number}",
        database_id=database,
        database=path,
        question=_text(row, question, where),
        query=_text(row, (query,), where).strip(),
        **{name: value.strip() for name, value in optional.items() if isinstance(value, str)},
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = _json(path, _content(path))
    if not isinstance(rows, list):
        raise SqlError(f"{path}: expected a list of objects, got {type(rows).__name__}")
    if not rows:
        raise SqlError(f"{path}: holds no rows")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise SqlError(f"{path}: row {number}: expected an object, got {type(row).__name__}")
    return rows


def _content(path: Path) -> str:
    with refusals(path, "read"):
        try:
            return path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise SqlError(f"{path}: is not UTF-8 text") from error


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SqlError(f"{path}: not valid JSON ({error})") from error


def _text(row: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    """The first of the fields that is there."""
    value = next((row[name] for name in names if row.get(name) is not None), None)
    if not isinstance(value, str) or not value.strip():
        raise SqlError(f"{where}: {names[-1]}: expected a text, got {value!r:.60}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a pair, which JSON can escape
        raise SqlError(f"{where}: {names[-1]}: expected a text, got half a character") from error
    return value


def _is_place(place: Any, count: int) -> bool:
    return type(place) is int and 0 <= place < count
