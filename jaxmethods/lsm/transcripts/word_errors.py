"""Word error rate: 100 (S + D + I) / N, with errors and words summed over a corpus.

S, D and I are the substitutions, deletions and insertions of a shortest way from the reference to
what was heard. Normalize both first (`normalize`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

Token = TypeVar("Token", str, int)


class Errors(NamedTuple):
    """What a hypothesis did to a reference."""

    substitutions: int
    deletions: int
    insertions: int
    words: int
    """Words of the reference."""

    @property
    def total(self) -> int:
        """S + D + I."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors a word; with no word in the reference, 0 where nothing was heard, else 1."""
        return self.total / self.words if self.words else float(self.total > 0)


def word_errors(reference: str, hypothesis: str) -> Errors:
    """Errors of one transcript.

    Args:
        reference: words with spaces between them.
        hypothesis: the same.

    Returns:
        Counts; among shortest ways, one with as many substitutions as possible.
    """
    return edit_errors(reference.split(), hypothesis.split())


def corpus_errors(references: Sequence[str], hypotheses: Sequence[str]) -> Errors:
    """Errors of all transcripts together.

    Args:
        references: transcripts.
        hypotheses: as many.

    Returns:
        Sums of all counts.

    Raises:
        ValueError: another number of hypotheses.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"hypotheses: expected {len(references)}, got {len(hypotheses)}")
    pairs = zip(references, hypotheses, strict=True)
    counts = [word_errors(reference, hypothesis) for reference, hypothesis in pairs]
    return Errors(*(sum(column) for column in zip(*counts, strict=True))) if counts else NO_ERRORS


NO_ERRORS = Errors(0, 0, 0, 0)


def edit_errors(reference: Sequence[Token], hypothesis: Sequence[Token]) -> Errors:
    """A shortest way between two sequences of tokens.

    Args:
        reference: words or ids.
        hypothesis: the same.

    Returns:
        Counts of a shortest way, with as many substitutions as possible.
    """
    rows, columns = len(reference), len(hypothesis)
    numbers = {token: number for number, token in enumerate([*reference, *hypothesis])}
    heard = np.asarray([numbers[token] for token in hypothesis], int)
    # Fewest edits, then most substitutions: a way with fewer of them has more of the other two.
    # Both in one number, edits times `edit` less substitutions, and a row of the table at a time.
    edit = min(rows, columns) + 1
    inserted = edit * np.arange(columns + 1)
    cost = inserted
    for token in reference:
        aligned = cost[:-1] + np.where(heard == numbers[token], 0, edit - 1)
        best = cost + edit  # a deletion
        best[1:] = np.minimum(best[1:], aligned)
        cost = np.minimum.accumulate(best - inserted) + inserted
    edits = -(-int(cost[-1]) // edit)
    substitutions = edits * edit - int(cost[-1])
    # Deletions less insertions is what the lengths differ by.
    others = edits - substitutions
    deletions = (others + rows - columns) // 2
    return Errors(substitutions, deletions, others - deletions, rows)
