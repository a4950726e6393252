"""One query out of several: the first that SQLite understands, or the one most agree on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxmethods.sql.execution import Executor, Result

PLACEHOLDER = "SQL placeholder"
"""What CodeS answers where a beam holds no text at all."""


class Vote(NamedTuple):
    """The candidate that was elected."""

    index: int
    votes: int
    """Candidates whose result is the same; 0 where none could be run."""


def first_executable(executor: Executor, database: str | Path, beams: Sequence[str]) -> str:
    """The first query that SQLite can plan; else the first, else a placeholder.

    Args:
        executor: asks SQLite for the plans; nothing is run.
        database: path of a SQLite file.
        beams: candidates, the most likely first.

    Returns:
        One of them, or "SQL placeholder" where none can be planned and the first is blank.
    """
    for beam in beams:
        if beam.strip() and executor.plan(database, beam).ok:
            return beam
    return beams[0] if beams and beams[0].strip() else PLACEHOLDER


def vote(executor: Executor, database: str | Path, candidates: Sequence[str]) -> Vote:
    """Self-consistency by execution: the candidate whose result most candidates have.

    Wang et al., "Self-Consistency Improves Chain of Thought Reasoning", ICLR 2023, with results in
    place of answers. Candidates that fail don't vote; results are compared as multisets of rows, or
    as lists where a query sorts; results with rows come before empty ones, which most wrong
    queries have; ties go to the earlier candidate.

    Args:
        executor: runs each different candidate once.
        database: path of a SQLite file.
        candidates: samples of a model, the most trusted first.

    Returns:
        The place of the first candidate with that result, and its votes; place 0 with 0 votes
        where none runs.

    Raises:
        ValueError: there are no candidates.
    """
    if not candidates:
        raise ValueError("candidates: expected at least one, got none")
    different = list(dict.fromkeys(candidates))
    results = executor.execute_many([(database, query) for query in different])
    found = dict(zip(different, results, strict=True))
    ballots = [
        _ballot(found[query], "order by" in query.lower()) if found[query].ok else None
        for query in candidates
    ]
    counts = Counter(ballot for ballot in ballots if ballot is not None)
    if not counts:
        return Vote(0, 0)
    best = max(counts.items(), key=lambda item: (bool(found_rows(item[0])), item[1]))
    return Vote(ballots.index(best[0]), best[1])


def found_rows(ballot: tuple) -> int:
    """How many rows the result of a ballot has."""
    return ballot[0]


def _ballot(result: Result, ordered: bool) -> tuple:
    """Equal for equal results."""
    if ordered:
        return len(result.rows), result.rows
    return len(result.rows), frozenset(Counter(result.rows).items())
