"""The judge beside the official evaluator of Spider: `python -m benchmarks.judge --official DIR`.

A thousand predictions on 20 databases, the generated world's and, with `--data`, those of a folder
in Spider's layout: half of them gold, a quarter another gold query of the database, a quarter gold
with one token changed. Both sides give the execution and the exact match of every prediction, in
turns on the same cores, each in a process of its own without its imports; verdicts are compared one
by one. DIR holds github.com/taoyds/test-suite-sql-eval; it needs the packages nltk and sqlparse in
the Python that `--python` names.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from jaxmethods import sql
from jaxmethods.files import write_atomically
from jaxmethods.kid.world import Sizes, write_world
from jaxmethods.records.provenance import describe_environment
from jaxmethods.sql.readers import Example

OFFICIAL = """
import contextlib, io, json, sys, time
sys.path.insert(0, sys.argv[1])
import nltk
# A query is one sentence, and the splitter of sentences is a download.
words = nltk.word_tokenize
nltk.word_tokenize = lambda text: words(text, preserve_line=True)
import evaluation

found = {"execution": [], "exact": []}
match, equal = evaluation.eval_exec_match, evaluation.Evaluator.eval_exact_match

def watched_match(**given):
    found["execution"].append(bool(match(**given)))
    return found["execution"][-1]

def watched_equal(self, predicted, gold):
    before = len(found["exact"])
    right = bool(equal(self, predicted, gold))
    found["exact"][before:] = [right]  # it asks itself about nested queries
    return right

evaluation.eval_exec_match = watched_match
evaluation.Evaluator.eval_exact_match = watched_equal
folder = sys.argv[2]
keys = evaluation.build_foreign_key_map_from_json(folder + "/tables.json")
start = time.perf_counter()
with contextlib.redirect_stdout(io.StringIO()):
    evaluation.evaluate(
        folder + "/gold.txt", folder + "/predicted.txt", folder + "/database", "all", keys,
        False, False, False,
    )
print(json.dumps(found | {"seconds": time.perf_counter() - start}))
"""
"""Runs the official command line's function; it keeps execution verdicts to itself."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judge", description=__doc__)
    parser.add_argument("--official", type=Path, required=True)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--data", type=Path, help="a folder in Spider's layout")
    parser.add_argument("--predictions", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ours", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.ours:
        print(json.dumps(ours(Path(options.ours))))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        examples, predictions = write_questions(Path(folder), options.data, options.predictions)
        databases = len({one.database for one in examples})
        itself = ["-m", "benchmarks.judge", "--official", str(options.official), "--ours", folder]
        theirs = [options.python, "-c", OFFICIAL, str(options.official.absolute()), folder]
        rounds = [(run([sys.executable, *itself]), run(theirs)) for _ in range(options.repeats)]
    own, other = rounds[0]
    differ = {
        name: sum(a != b for a, b in zip(own[name], other[name], strict=True))
        for name in ("execution", "exact")
    }
    seconds = np.array([[side["seconds"] for side in sides] for sides in rounds])
    row = {
        "predictions": len(predictions),
        "databases": databases,
        "right": int(np.sum(own["execution"])),
        "exact": int(np.sum(own["exact"])),
        "verdicts_that_differ": differ,
        "seconds_ours": np.median(seconds[:, 0]).item(),
        "seconds_official": np.median(seconds[:, 1]).item(),
        "ratio": np.median(seconds[:, 1] / seconds[:, 0]).item(),
        "ratios": (seconds[:, 1] / seconds[:, 0]).tolist(),
    }
    environment = describe_environment() | {"cores": len(os.sched_getaffinity(0))}
    text = json.dumps({"environment": environment, "rows": [row]}, indent=1)
    print(text)
    if options.json:
        write_atomically(options.json, text + "\n")
    return 0


def ours(folder: Path) -> dict[str, Any]:
    """Verdicts on what `write_questions` left, and how long they took, starting processes too."""
    examples, predictions = read_questions(folder)
    start = time.perf_counter()
    with sql.Executor() as executor:
        tables = sql.read_tables(folder / "tables.json")
        judge = sql.Judge(executor, tables=tables, official_cli_compat=True)
        verdicts = judge.report(examples, predictions).verdicts
    return {
        "seconds": time.perf_counter() - start,
        "execution": [one.execution for one in verdicts],
        "exact": [one.exact for one in verdicts],
    }


def run(command: list[str]) -> dict[str, Any]:
    """What a process says in its last line."""
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(ended.stderr)
    return json.loads(ended.stdout.splitlines()[-1])


def write_questions(
    folder: Path, data: Path | None, count: int, seed: int = 0
) -> tuple[list[Example], list[str]]:
    """Writes the world, and gold and predicted queries as the official evaluator reads them.

    Args:
        folder: is filled.
        data: a folder in Spider's layout whose databases are added.
        count: of predictions, spread evenly over databases.
        seed: of questions and predictions.
    """
    world = folder / "world"
    write_world(world, seed, Sizes(train=2 * count, same=1, combine=1, unseen=count))
    found = [*sql.read_spider(world, "train"), *sql.read_spider(world, "unseen")]
    records = json.loads((world / "tables.json").read_text())
    if data is not None:
        for split in ("train", "dev"):
            found += sql.read_spider(data, split)
        records += json.loads((data / "tables.json").read_text())
    by_database: dict[str, list[Example]] = defaultdict(list)
    for example in found:
        if "null" not in example.query.lower():  # the official parser doesn't know it, and stops
            by_database[example.database_id].append(example)
    chance, lines = random.Random(seed), []
    names = sorted(by_database)
    for number in range(count):
        name = names[number % len(names)]
        own = by_database[name]
        example = own[number // len(names) % len(own)]
        lines.append((example, _predicted(example, own, chance)))
    for name in names:
        place = folder / "database" / name / f"{name}.sqlite"
        place.parent.mkdir(parents=True)
        place.write_bytes(by_database[name][0].database.read_bytes())
    (folder / "tables.json").write_text(json.dumps(records))
    gold = [f"{' '.join(one.query.split())}\t{one.database_id}\n" for one, _ in lines]
    (folder / "gold.txt").write_text("".join(gold))
    (folder / "predicted.txt").write_text("".join(f"{query}\n" for _, query in lines))
    return read_questions(folder)


def read_questions(folder: Path) -> tuple[list[Example], list[str]]:
    """Gold and predicted queries."""
    examples = []
    for number, line in enumerate((folder / "gold.txt").read_text().splitlines()):
        query, name = line.split("\t")
        database = folder / "database" / name / f"{name}.sqlite"
        examples.append(Example(str(number), name, database, "", query))
    return examples, (folder / "predicted.txt").read_text().splitlines()


def _predicted(example: Example, others: list[Example], chance: random.Random) -> str:
    """A prediction on one line."""
    draw = chance.random()
    if draw < 0.5:
        return " ".join(example.query.split())
    if draw < 0.75:
        return " ".join(chance.choice(others).query.split())
    words = example.query.split()
    words[chance.randrange(1, len(words))] = chance.choice(chance.choice(others).query.split())
    return " ".join(words)


if __name__ == "__main__":
    raise SystemExit(main())
