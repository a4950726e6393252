"""Speech anchor bias from outside: what a model says when it is asked for something else.

    copy         the answer is the transcript: word error rate at most 0.34, where the transcript
                 isn't asked for and isn't the right answer
    follow       the answer is right for the instruction
    sensitivity  how far the answers to one clip differ between instructions: mean edit distance of
                 all pairs of answers over their mean length
    forgetting   follow on speech / follow on text before tuning - 1

A model that was tuned on transcriptions alone copies always and follows nothing. The definitions
are ours; the published ones could not be read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from jaxmethods.lsm.transcripts.word_errors import edit_errors

COPIED = 0.34
"""The largest word error rate of a copy."""


def copies(answers: Sequence[str], transcripts: Sequence[str], right: Sequence[str]) -> np.ndarray:
    """Which answers are the transcript.

    Args:
        answers: normalized, one a clip.
        transcripts: normalized.
        right: the right answers, normalized.

    Returns:
        [n] float: 1 for a copy, 0 for none, NaN where the right answer is a copy itself.

    Raises:
        ValueError: numbers of texts differ.
    """
    _check(answers, transcripts, right)
    found = []
    for said, transcript, wanted in zip(answers, transcripts, right, strict=True):
        words = transcript.split()
        if edit_errors(words, wanted.split()).rate <= COPIED:
            found.append(np.nan)
        else:
            found.append(float(edit_errors(words, said.split()).rate <= COPIED))
    return np.asarray(found)


def follows(answers: Sequence[str], right: Sequence[str]) -> np.ndarray:
    """Which answers are the right ones, [n] float."""
    _check(answers, right)
    return np.asarray([float(a == b) for a, b in zip(answers, right, strict=True)])


def contains_one_label(answer: str, labels: Sequence[str], right: str) -> bool:
    """Whether exactly one label occurs in an answer, and is the right one.

    Args:
        answer: normalized.
        labels: all there are; an underscore is a space.
        right: the right one.

    Returns:
        False where none or several occur.
    """
    words = f" {' '.join(answer.split())} "
    found = []
    # The longest first: "play music" is no "play".
    for label in sorted(dict.fromkeys(labels), key=len, reverse=True):
        own = f" {label.replace('_', ' ')} "
        if own in words:
            found.append(label)
        while own in words:
            words = words.replace(own, " | ")
    return found == [right]


def word_f1(answer: str, right: str) -> float:
    """Harmonic mean of precision and recall of words, each as often as it occurs; key words are
    judged by it.

    Args:
        answer: normalized.
        right: the right one, normalized.

    Returns:
        From 0 to 1; 0 where no word is shared.
    """
    said, wanted = Counter(answer.split()), Counter(right.split())
    shared = (said & wanted).total()
    return 2 * shared / (said.total() + wanted.total()) if shared else 0.0


def sensitivity(answers: Sequence[Sequence[str]]) -> np.ndarray:
    """How far answers to one clip differ between instructions.

    Args:
        answers: texts, n for each instruction.

    Returns:
        [n] float, 0 where all instructions get one answer.

    Raises:
        ValueError: fewer than two instructions, or numbers of texts differ.
    """
    if len(answers) < 2:
        raise ValueError(f"answers: expected those to two instructions or more, got {len(answers)}")
    _check(*answers)
    found = []
    for said in zip(*answers, strict=True):
        words = [text.split() for text in said]
        edits = [edit_errors(a, b).total for a, b in combinations(words, 2)]
        length = np.mean([len(one) for one in words])
        found.append(float(np.mean(edits) / length) if length else 0.0)
    return np.asarray(found)


def forgetting(speech: float, text: float) -> float:
    """follow(speech) / follow(text before tuning) - 1; NaN where nothing was followed in text."""
    return speech / text - 1 if text else float("nan")


def _check(*texts: Sequence[str]) -> None:
    numbers = {len(one) for one in texts}
    if len(numbers) > 1:
        raise ValueError(f"answers: expected as many texts everywhere, got {sorted(numbers)}")
