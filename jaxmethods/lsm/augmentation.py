"""What self-powered data is made of: kinds of instructions, their wordings, and a filter.

The language model answers text instructions about transcripts, and its own answers, not the
transcripts, become the targets for the audio. `INSTRUCTIONS` has five wordings a kind, our own.
An answer that was cut off teaches a model to stop anywhere: those that don't end in punctuation are
dropped (`keep_response`).
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Mapping

import numpy as np

INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "continuation": (
        "Continue this in a coherent and engaging way, in fewer than 50 words",
        "Write what could come next, in at most 50 words that hold the attention",
        "Carry the following on with a fitting sequel of fewer than 50 words",
        "Add a short and lively continuation that agrees with what was said, below 50 words",
        "Go on from here in your own words, coherently and in no more than 50 words",
    ),
    "repetition": (
        "Say the following again in other words, with its meaning and details kept",
        "Restate this so that nothing of its content is lost",
        "Rephrase what is said and keep every detail",
        "Put this differently, but leave the meaning as it is",
        "Repeat the content of this in a new wording without leaving anything out",
    ),
    "keyword": (
        "List the words that matter most here, without filler words, as its main topics",
        "Name the main topics of this by its most important words or phrases",
        "Which content words or phrases stand out here? Leave out function words",
        "Give me the key terms of the following",
        "Pick the most frequent or important words here, stop words apart",
    ),
    "intent": (
        "What is the main purpose of this, and how clearly is it conveyed?",
        "Say what the speaker wants here, and whether that becomes clear",
        "Describe the intention behind the following and how plainly it is expressed",
        "Identify the goal of these words and judge how clear it is",
        "Explain what this is meant to achieve, and how evident that is",
    ),
    "sentiment": (
        "Describe the emotional tone of this and the parts that carry it",
        "Which feeling do these words convey, and where does it show?",
        "Judge the mood of the following and name what it rests on",
        "Is this positive, negative or neutral in tone? Point to the words that say so",
        "What emotion is expressed here, and by which parts?",
    ),
    "translation": (
        "Translate the following from English into {language}",
        "Give the {language} translation of this",
        "How would one say this in {language}?",
        "Render these English words in {language}",
        "Write the same in {language}",
    ),
    "transcription": (
        "Write down what is said, word by word",
        "Transcribe the speech",
        "Turn the following recording into text",
        "Give me the exact words of this recording",
        "Note what the speaker says as text",
    ),
}
"""Kind -> five wordings; `{language}` is a target language."""
CJK_MARKS = "。！？；：，、．…「」『』（）《》〈〉【】〔〕“”‘’—～"  # noqa: RUF001
ENDS = frozenset(string.punctuation + CJK_MARKS)
"""What an answer may end in: ASCII punctuation and CJK marks; so it may in other punctuation."""
PUBLISHED_ENDS = ENDS | frozenset("aceiot&#0238`【】")
"""The published character class holds a stray citation, whose letters and digits pass too."""


def keep_response(text: str, compat: bool = False) -> bool:
    """Whether a generated answer is one that was finished.

    Args:
        text: the answer.
        compat: the published rule with its mistakes: no space is stripped, some letters and digits
            pass as well. An empty answer, an error there, is dropped.

    Returns:
        Whether its last character is punctuation.
    """
    if compat:
        return bool(text) and text[-1] in PUBLISHED_ENDS
    stripped = text.rstrip()  # Hindi, Arabic or Greek end a sentence by marks of their own
    return bool(stripped) and (stripped[-1] in ENDS or unicodedata.category(stripped[-1])[0] == "P")


def draw_kinds(
    rng: np.random.Generator, rows: int, mixture: Mapping[str, float]
) -> tuple[list[str], np.ndarray]:
    """A kind and a wording for each of several rows.

    Args:
        rng: NumPy's generator.
        rows: how many.
        mixture: kind -> weight; at least one above 0.

    Returns:
        Kinds, and numbers that pick a wording of `INSTRUCTIONS`, [rows] int.

    Raises:
        ValueError: an unknown kind, or weights that are no mixture.
    """
    unknown = sorted(set(mixture) - set(INSTRUCTIONS))
    if unknown:
        raise ValueError(f"mixture: expected some of {sorted(INSTRUCTIONS)}, got {unknown[0]!r}")
    weights = np.asarray(list(mixture.values()), float)
    if not len(weights) or weights.min() < 0 or not weights.sum() > 0:
        raise ValueError(f"mixture: expected weights of at least 0, not all 0, got {dict(mixture)}")
    chosen = rng.choice(len(weights), size=rows, p=weights / weights.sum())
    names = list(mixture)
    return [names[number] for number in chosen], rng.integers(0, 5, rows)
