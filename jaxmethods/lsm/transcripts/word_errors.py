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
    # Fewest edits, then most substitutions: a way with fewer of them has more of the other two.
    cost = np.zeros((rows + 1, columns + 1, 2), int)
    cost[:, 0, 0], cost[0, :, 0] = np.arange(rows + 1), np.arange(columns + 1)
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            differ = int(reference[i - 1] != hypothesis[j - 1])
            ways = (
                (cost[i - 1, j - 1, 0] + differ, cost[i - 1, j - 1, 1] - differ),
                (cost[i - 1, j, 0] + 1, cost[i - 1, j, 1]),
                (cost[i, j - 1, 0] + 1, cost[i, j - 1, 1]),
            )
            cost[i, j] = min(ways)
    edits, negative = (int(x) for x in cost[rows, columns])
    substitutions = -negative
    # Deletions less insertions is what the lengths differ by.
    others = edits - substitutions
    deletions = (others + rows - columns) // 2
    return Errors(substitutions, deletions, others - deletions, rows)
