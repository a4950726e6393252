"""Answers as ids become queries, and queries verdicts."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmethods.kid.recipes.material import Texts
from jaxmethods.numerics.statistics import standard_error
from jaxmethods.sql.fuzz import fuzz_databases
from jaxmethods.sql.readers import Example
from jaxmethods.sql.serialization import quote_names
from jaxmethods.sql.vote import first_executable, vote


class Verdicts(NamedTuple):
    """What is right about a model's answers to a split."""

    execution: np.ndarray
    """[S, Q] bool: the result is the gold query's."""
    exact: np.ndarray
    """[S, Q] bool: the query is the gold one, clause by clause."""
    failed: np.ndarray
    """[S, Q] bool: it could not be run."""
    ended: np.ndarray
    """[S, Q] bool: it has an end, as opposed to as many tokens as are allowed."""
    texts: tuple[tuple[str, ...], ...]
    """The queries, [S][Q]."""

    def means(self) -> dict[str, np.ndarray]:
        """Shares of the questions, [S]."""
        return {name: getattr(self, name).mean(1) for name in SHARES}

    def errors(self) -> dict[str, np.ndarray]:
        """Their standard errors over questions, [S]."""
        return {name: standard_error(getattr(self, name).astype(float), 1) for name in SHARES}


SHARES = ("execution", "exact", "failed", "ended")


def judge_answers(texts: Texts, examples: Sequence[Example], answers: Any) -> Verdicts:
    """Verdicts on generated answers.

    Args:
        texts: with the tokenizer and the databases.
        examples: Q.
        answers: tokens [S, Q, R] and lengths [S, Q], of numpy.
    """
    tokens, lengths = (np.asarray(leaf) for leaf in answers)
    queries = to_queries(texts, examples, answers)
    last = np.take_along_axis(tokens, np.maximum(lengths - 1, 0)[..., None], -1)[..., 0]
    ended = (lengths > 0) & np.isin(last, texts.tokenizer.ends)
    return judge_queries(texts, examples, queries, ended)


def elect(texts: Texts, examples: Sequence[Example], samples: Sequence[Any]) -> Verdicts:
    """Verdicts on the queries whose results most of the sampled answers have.

    Args:
        texts: with the tokenizer and the databases.
        examples: Q.
        samples: tokens [S, Q, R] and lengths [S, Q] of each.
    """
    executor = texts.questions.executor()
    written = [to_queries(texts, examples, one) for one in samples]
    seeds = range(len(written[0]))

    def winner(place: int, candidates: list[str]) -> str:
        return candidates[vote(executor, examples[place].database, candidates).index]

    elected = [
        executor.each(
            winner,
            [(place, [one[seed][place] for one in written]) for place in range(len(examples))],
        )
        for seed in seeds
    ]
    ended = np.ones((len(elected), len(examples)), bool)
    return judge_queries(texts, examples, elected, ended)


def best_beams(texts: Texts, examples: Sequence[Example], answers: Any) -> tuple[Any, Any]:
    """Chooses, for every question, the first beam that SQLite can plan; else the first.

    Args:
        texts: with the tokenizer and the databases.
        examples: Q.
        answers: tokens [S, Q, K, R] and lengths [S, Q, K], of numpy.

    Returns:
        tokens [S, Q, R] and lengths [S, Q].
    """
    tokens, lengths = (np.asarray(leaf) for leaf in answers)
    executor = texts.questions.executor()

    def place(seed: int, number: int) -> int:
        example = examples[number]
        rows = zip(tokens[seed, number], lengths[seed, number], strict=True)
        queries = [to_query(texts, example, list(row[:length])) for row, length in rows]
        best = first_executable(executor, example.database, queries)
        return queries.index(best) if best in queries else 0

    every = list(np.ndindex(*lengths.shape[:2]))
    places = np.reshape(executor.each(place, every), lengths.shape[:2])
    return (
        np.take_along_axis(tokens, places[..., None, None], 2)[:, :, 0],
        np.take_along_axis(lengths, places[..., None], 2)[:, :, 0],
    )


def judge_fuzzed(
    texts: Texts,
    examples: Sequence[Example],
    verdicts: Mapping[str, Verdicts],
    count: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Which queries are right on changed copies of their database as well.

    Args:
        texts: with the databases.
        examples: Q.
        verdicts: of several models, on the databases as they are: what is wrong stays wrong.
        count: of changed copies.
        seed: of the changes.

    Returns:
        model -> [S, Q] bool.
    """
    judge, executor = texts.questions.judge(), texts.questions.executor()
    with tempfile.TemporaryDirectory() as folder:
        copies = {}
        for database in sorted({example.database for example in examples}):
            gold = [example.query for example in examples if example.database == database]
            place = Path(folder) / database.stem
            copies[database] = fuzz_databases(database, place, count, seed, gold)[1:]

        def right(query: str, number: int) -> bool:
            example = examples[number]
            return judge.execution_match(copies[example.database], query, example.query)[0]

        found = {}
        for title, own in verdicts.items():
            found[title] = own.execution.copy()
            places = np.argwhere(own.execution)
            asked = [(own.texts[row][number], int(number)) for row, number in places]
            if asked:
                found[title][own.execution] = executor.each(right, asked)
    return found


def to_queries(texts: Texts, examples: Sequence[Example], answers: Any) -> list[list[str]]:
    """The queries [S][Q] that generated answers mean."""
    tokens, lengths = (np.asarray(leaf) for leaf in answers)
    return [
        [
            to_query(texts, example, list(row[:length]))
            for example, row, length in zip(examples, rows, own, strict=True)
        ]
        for rows, own in zip(tokens, lengths, strict=True)
    ]


def judge_queries(
    texts: Texts, examples: Sequence[Example], queries: Sequence[Sequence[str]], ended: np.ndarray
) -> Verdicts:
    """Executes queries and compares their results with those of the gold ones.

    Args:
        texts: with the databases.
        examples: Q.
        queries: [S][Q].
        ended: [S, Q] bool: which of them have an end.

    Returns:
        Verdicts on all of them.
    """
    judge = texts.questions.judge()
    reports = [judge.report(examples, own).verdicts for own in queries]
    columns = {
        "execution": [[one.execution for one in own] for own in reports],
        "exact": [[one.exact for one in own] for own in reports],
        "failed": [[one.status != "ok" for one in own] for own in reports],
    }
    arrays = {name: np.asarray(value, bool) for name, value in columns.items()}
    return Verdicts(**arrays, ended=ended, texts=tuple(tuple(own) for own in queries))


def to_query(texts: Texts, example: Example, ids: list[int]) -> str:
    """The query that ids mean, on one line."""
    ends = texts.tokenizer.ends
    kept = list(takewhile(lambda token: token not in ends, ids))
    (text,) = texts.tokenizer.decode([kept])
    return quote_names(text, texts.questions.schema(example.database)).strip()


def most_frequent(texts: Texts, examples: Sequence[Example]) -> list[str]:
    """The most frequent training query of each question's database, else `SELECT 1`."""
    counts: dict[str, Counter[str]] = {}
    for example in texts.questions.splits().train:
        counts.setdefault(example.database_id, Counter())[example.query] += 1
    best = {name: own.most_common(1)[0][0] for name, own in counts.items()}
    return [best.get(example.database_id, "SELECT 1") for example in examples]
