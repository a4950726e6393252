"""Token sequences of multiple-choice questions as a prefix tree, so that no token is run twice.

All sequences begin with the same instruction (the root, level 0), those of one question share the
question (level 1), and each candidate has its own end (level 2). The root is run once. A question
with its candidates is one row [question | candidate 1 | candidate 2 | ...], in which a token sees
the root, the question and the earlier tokens of its own candidate, at the position it has in its
own sequence: the same numbers as from one row for each candidate, with a fraction of the tokens.

Prefixes are found on token ids, since tokenizers may merge over the border of prompt and
candidate. Equal candidates of a question become one, and so have bitwise equal norms. Rows of
similar length share a batch of one of few shapes. This module runs on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmethods.language.prompts import common_prefix

BUCKETS = (*range(16, 128, 16), *range(128, 320, 32), *range(320, 640, 64), *range(640, 4097, 128))
"""Lengths that rows are padded to."""
QUESTION, PADDING = 0, -1
"""Segments of a row; candidate c is segment c + 1."""

Sequences = Sequence[Sequence[Sequence[int]]]
"""Token ids of questions, of their candidates: whole sequences, prompt included."""


class Rows(NamedTuple):
    """A batch of rows, each a question with its candidates."""

    ids: Any
    """[B, T] int32."""
    positions: Any
    """[B, T] int32: where the token stands in its own sequence."""
    segments: Any
    """[B, T] int32: 0 for the question, c + 1 for its c-th distinct candidate, -1 for padding."""
    ends: Any
    """[B, C] int32: index in the row of each candidate's last token; 0 where there is none."""
    starts: Any
    """[B] int32: position of the first token that belongs to the candidates, not to the prompt."""


class Cost(NamedTuple):
    """What is run, in tokens."""

    naive: int
    """One row for each candidate."""
    tokens: int
    """The tree's, before padding."""
    padded: int
    """The tree's, with padding."""
    shapes: int
    """Different programs, that of the root included."""


class Tree(NamedTuple):
    """Sequences of Q questions of up to C candidates."""

    root: np.ndarray
    """[S] int32, padded."""
    root_length: int
    batches: list[Rows]
    questions: list[np.ndarray]
    """For each batch, [B] int: the question of each row; -1 for a row of padding."""
    slots: np.ndarray
    """[Q, C] int: which distinct candidate of its question a candidate is; -1 for none."""
    cost: Cost


def build_tree(
    sequences: Sequences,
    prompt_lengths: Sequence[int] | None = None,
    *,
    share_root: bool = True,
    batch_tokens: int = 2048,
    shapes: int = 12,
    buckets: Sequence[int] = BUCKETS,
) -> Tree:
    """Plans what is run.

    Args:
        sequences: token ids of every candidate of every question.
        prompt_lengths: tokens of each question's prompt, for the likelihood of what follows;
            default: what its candidates share.
        share_root: run what all sequences share only once (otherwise it is part of every row).
        batch_tokens: roughly the number of tokens that are run at once.
        shapes: no more different programs than this.
        buckets: lengths that rows are padded to.

    Returns:
        Rows, and the batches they are run in.

    Raises:
        ValueError: no questions, a question without candidates or an empty sequence.
    """
    _check(sequences)
    distinct = [list(dict.fromkeys(map(tuple, question))) for question in sequences]
    shared = [_own_end(question, common_prefix(question)) for question in distinct]
    starts = candidate_starts(distinct, prompt_lengths)
    root = 0
    if share_root:
        everything = [sequence for question in distinct for sequence in question]
        root = min(_own_end(everything, common_prefix(everything)), *starts, *shared)
    rows = [_row(question, root, prefix) for question, prefix in zip(distinct, shared, strict=True)]
    lengths = np.array([len(ids) for ids, *_ in rows])
    plan = plan_batches(lengths, batch_tokens, shapes - 1, buckets)
    slots = 1 << (max(map(len, distinct)) - 1).bit_length()
    batches = [_batch(rows, starts, chosen, size, length, slots) for chosen, size, length in plan]
    padded_root = -(-max(root, 1) // buckets[0]) * buckets[0]
    tree_tokens = int(lengths.sum()) + root
    return Tree(
        root=np.pad(np.asarray(distinct[0][0][:root], np.int32), (0, padded_root - root)),
        root_length=root,
        batches=batches,
        questions=[np.pad(c, (0, size - len(c)), constant_values=-1) for c, size, _ in plan],
        slots=_slots(sequences, distinct),
        cost=Cost(
            naive=sum(len(sequence) for question in sequences for sequence in question),
            tokens=tree_tokens,
            padded=sum(batch.ids.size for batch in batches) + padded_root,
            shapes=len({batch.ids.shape for batch in batches}) + 1,
        ),
    )


def candidate_starts(
    sequences: Sequences, prompt_lengths: Sequence[int] | None = None
) -> list[int]:
    """Position of each question's first token that belongs to its candidates; see `Rows`."""
    shared = [_own_end(question, common_prefix(question)) for question in sequences]
    lengths = shared if prompt_lengths is None else prompt_lengths
    return [max(1, min(length, prefix)) for length, prefix in zip(lengths, shared, strict=True)]


def plan_batches(
    lengths: np.ndarray, batch_tokens: int, shapes: int, buckets: Sequence[int] = BUCKETS
) -> list[tuple[np.ndarray, int, int]]:
    """Which rows share a batch, how many rows it has and how long they are.

    The longest rows left choose the length, and the batch is filled with the next shorter ones, so
    that only the last batch of all is not full.

    Args:
        lengths: [rows] int, in tokens.
        batch_tokens: of a batch, at most; a single row may have more.
        shapes: how many lengths there may be.
        buckets: lengths to choose from.

    Returns:
        [(numbers of the rows, B, T), ...].
    """
    sizes = _bucket_sizes(lengths, shapes, buckets)
    order = np.argsort(-lengths, kind="stable")
    plan = []
    while order.size:
        length = int(sizes[np.searchsorted(sizes, lengths[order[0]])])
        number = max(1, min(batch_tokens // length, len(lengths)))
        plan.append((order[:number], number, length))
        order = order[number:]
    return plan


def _bucket_sizes(lengths: np.ndarray, shapes: int, buckets: Sequence[int]) -> np.ndarray:
    """At most `shapes` of the bucket lengths, those that pad least; longer ones go on in steps."""
    step = buckets[-1] - buckets[-2]
    known = list(buckets)
    while known[-1] < lengths.max():
        known.append(known[-1] + step)
    sizes = np.asarray(known)
    sizes, counts = np.unique(sizes[np.searchsorted(sizes, lengths)], return_counts=True)
    while len(sizes) > shapes:  # rows of the bucket that goes are padded to the next one
        least = int(np.argmin(counts[:-1] * np.diff(sizes)))
        counts[least + 1] += counts[least]
        sizes, counts = np.delete(sizes, least), np.delete(counts, least)
    return sizes


def _check(sequences: Sequences) -> None:
    if not len(sequences):
        raise ValueError("sequences: expected at least one question")
    for number, question in enumerate(sequences):
        if not len(question) or not all(len(sequence) for sequence in question):
            raise ValueError(
                f"sequences: question {number} has no candidates, or one without tokens"
            )


def _own_end(sequences: Sequence[Sequence[int]], prefix: int) -> int:
    """A prefix that leaves every sequence at least one token of its own."""
    return min(prefix, min(map(len, sequences)) - 1)


def _row(question: Sequence[Sequence[int]], root: int, prefix: int) -> tuple:
    ids, positions = list(question[0][root:prefix]), list(range(root, prefix))
    segments, ends = [QUESTION] * len(ids), []
    for number, sequence in enumerate(question):
        own = sequence[prefix:]
        ids += own
        positions += range(prefix, prefix + len(own))
        segments += [number + 1] * len(own)
        ends.append(len(ids) - 1)
    return ids, positions, segments, ends


def _batch(
    rows: Sequence[tuple],
    starts: Sequence[int],
    chosen: np.ndarray,
    size: int,
    length: int,
    slots: int,
) -> Rows:
    ids, positions = np.zeros((2, size, length), np.int32)
    segments = np.full((size, length), PADDING, np.int32)
    ends = np.zeros((size, slots), np.int32)
    for place, row in enumerate(chosen):
        for array, values in zip((ids, positions, segments, ends), rows[row], strict=True):
            array[place, : len(values)] = values
    first = np.zeros(size, np.int32)
    first[: len(chosen)] = np.asarray(starts)[chosen]
    return Rows(ids, positions, segments, ends, first)


def _slots(sequences: Sequences, distinct: Sequence[Sequence[tuple]]) -> np.ndarray:
    slots = np.full((len(sequences), max(map(len, sequences))), -1)
    for number, (question, known) in enumerate(zip(sequences, distinct, strict=True)):
        places = {sequence: place for place, sequence in enumerate(known)}
        slots[number, : len(question)] = [places[tuple(sequence)] for sequence in question]
    return slots
