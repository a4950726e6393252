"""Answers beside what is right and what is said: who copies, who follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxmethods.lsm.behavior import contains_one_label, copies, sensitivity, word_f1
from jaxmethods.lsm.recipes.recordings.rows import Row
from jaxmethods.lsm.transcripts.word_errors import corpus_errors, word_errors

COPIES = ("transcription", "repetition")
"""Kinds whose answer is the transcript, or close to it."""
LABELED = ("intent", "sentiment")
"""Kinds whose right answer is one of a few labels."""
FOLLOWED = (*LABELED, "keyword")
"""Kinds for which following is measured, where right answers are known."""


class Verdicts(NamedTuple):
    """What was answered to one kind of instruction."""

    kind: str
    raw: tuple[tuple[str, ...], ...]
    """[S][N]: answers as they were given."""
    answers: tuple[tuple[str, ...], ...]
    """[S][N]: normalized."""
    right: tuple[str | None, ...]
    """[N]: right answers, normalized; None: unknown."""
    transcripts: tuple[str, ...]
    """[N]: what is said, normalized."""
    translations: tuple[str | None, ...]
    """[N]: right answers as they are written."""

    def copy(self) -> np.ndarray:
        """[S, N]: 1 for the transcript in place of an answer; NaN where it is the answer."""
        right = [text or "" for text in self.right]
        return np.stack([copies(own, self.transcripts, right) for own in self.answers])

    def follow(self) -> np.ndarray:
        """[S, N]: how right an answer is, 0 to 1; NaN where nobody knows."""
        labels = sorted({text for text in self.right if text})

        def value(answer: str, right: str | None) -> float:
            if not right or self.kind not in FOLLOWED:
                return np.nan
            if self.kind in LABELED:
                return float(contains_one_label(answer, labels, right))
            return word_f1(answer, right)

        return np.asarray([list(map(value, own, self.right)) for own in self.answers])

    def word_error_rate(self) -> np.ndarray:
        """[S]: errors a word against what is said."""
        return np.asarray([corpus_errors(self.transcripts, own).rate for own in self.answers])

    def errors(self) -> np.ndarray:
        """[S, N]: word error rate of each recording."""
        return np.asarray([list(map(_rate, self.transcripts, own)) for own in self.answers])


def _rate(said: str, heard: str) -> float:
    return word_errors(said, heard).rate


def verdicts_of(
    kind: str, texts: Sequence[Sequence[str]], rows: Sequence[Row], normalize: Callable[[str], str]
) -> Verdicts:
    """Answers beside what is right.

    Args:
        kind: of instructions.
        texts: [S][N] answers.
        rows: N recordings.
        normalize: how texts are compared.

    Returns:
        Everything that is judged.
    """
    right = [row.answer(kind) for row in rows]
    plain = [None if text is None else normalize(text.replace("_", " ")) for text in right]
    return Verdicts(
        kind,
        tuple(map(tuple, texts)),
        tuple(tuple(map(normalize, own)) for own in texts),
        tuple(plain),
        tuple(normalize(row.text) for row in rows),
        tuple(right),
    )


def asked_of(kinds: Sequence[str]) -> list[str]:
    """Kinds whose answer is not the transcript."""
    return [kind for kind in kinds if kind not in COPIES]


def values_of(found: Mapping[str, Verdicts], kinds: Sequence[str], measure: str) -> np.ndarray:
    """`copy` or `follow` of every recording and kind, [S, N, kinds]."""
    return np.stack([getattr(found[kind], measure)() for kind in kinds], axis=2)


def sensitivities(found: Mapping[str, Verdicts]) -> np.ndarray:
    """How far answers to a recording differ between kinds of instructions, [S, N]."""
    seeds = len(next(iter(found.values())).answers)
    return np.stack(
        [sensitivity([own.answers[seed] for own in found.values()]) for seed in range(seeds)]
    )
