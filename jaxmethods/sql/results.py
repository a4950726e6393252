"""When two results are equal: Spider's rule and BIRD's.

Spider: the columns of one can be reordered so that its rows are those of the other, as lists where
the gold query has an ORDER BY, otherwise as multisets (Zhong et al., "Semantic Evaluation for
Text-to-SQL with Distilled Test Suites", EMNLP 2020, arXiv 2010.02840). BIRD: the sets of rows are
equal; columns stay in their order (Li et al., NeurIPS 2023, arXiv 2305.03111).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeAlias

Rows: TypeAlias = Sequence[tuple[Any, ...]]

TRIES = 2000
"""Orders of columns that are looked at; only results of a dozen columns of equal values need it."""


def results_equal(own: Rows, gold: Rows, ordered: bool) -> bool:
    """Whether some order of the columns makes the results equal.

    Args:
        own, gold: rows; 1 and 1.0 are equal, as in Python.
        ordered: whether the order of the rows counts.

    Returns:
        True for two empty results, whatever their columns are.
    """
    if not own or not gold:
        return not own and not gold
    if len(own) != len(gold) or len(own[0]) != len(gold[0]):
        return False
    columns, targets = list(zip(*own, strict=True)), list(zip(*gold, strict=True))
    if ordered:
        return Counter(columns) == Counter(targets)
    counts, wanted = [list(map(Counter, found)) for found in (columns, targets)]
    options = [
        [place for place, count in enumerate(counts) if count == target] for target in wanted
    ]
    if not all(options):
        return False
    tries = iter(range(TRIES))
    return _assign([], options, columns, targets, tries)


def bird_equal(own: Rows, gold: Rows) -> bool:
    """Whether the sets of rows are equal: duplicates and order of rows don't count.

    Args:
        own, gold: rows; 1 and 1.0 are equal, as in Python.

    Returns:
        True where each row of one is a row of the other, its columns in the same order.
    """
    return set(own) == set(gold)


def order_counts(gold: str) -> bool:
    """Whether the order of rows counts, which the gold query's text decides."""
    return "order by" in gold.lower()


def _assign(
    chosen: list[int], options: list[list[int]], columns: Any, targets: Any, tries: Any
) -> bool:
    """Finds columns for the remaining targets so that the rows so far are equal as multisets."""
    if len(chosen) == len(targets):
        return True
    for place in options[len(chosen)]:
        if place in chosen:
            continue
        if next(tries, None) is None:
            return False
        further = [*chosen, place]
        own = Counter(zip(*(columns[one] for one in further), strict=True))
        gold = Counter(zip(*targets[: len(further)], strict=True))
        if own == gold and _assign(further, options, columns, targets, tries):
            return True
    return False
