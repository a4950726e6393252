"""Answers as ids become queries, and queries verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmethods.kid.recipes.material import Texts
from jaxmethods.numerics.statistics import standard_error
from jaxmethods.sql.readers import Example
from jaxmethods.sql.serialization import quote_names
from jaxmethods.sql.vote import vote


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
    ended = (lengths > 0) & (last == texts.tokenizer.end)
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
    end = texts.tokenizer.end
    kept = ids[: ids.index(end)] if end in ids else ids
    (text,) = texts.tokenizer.decode([kept])
    return quote_names(text, texts.questions.schema(example.database)).strip()


def most_frequent(texts: Texts, examples: Sequence[Example]) -> list[str]:
    """The most frequent training query of each question's database, else `SELECT 1`."""
    counts: dict[str, Counter[str]] = {}
    for example in texts.questions.splits()["train"]:
        counts.setdefault(example.database_id, Counter())[example.query] += 1
    best = {name: own.most_common(1)[0][0] for name, own in counts.items()}
    return [best.get(example.database_id, "SELECT 1") for example in examples]
