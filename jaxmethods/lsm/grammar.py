"""A small world of spoken commands: sentences, what they mean, and the words of a language model.

A sentence is a command with one value and maybe a remark that carries a feeling:

    play some jazz | will it rain in paris | wake me at seven ...  + thank you | this is awful | ...

For each the right answer to five kinds of instructions is known (`answer`). A language model is
taught them as text; which of them it gives about speech is what is measured. Words are tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxmethods.lsm.prompts import Template

COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "music": (
        ("play some {}", "i want to hear {}", "put on a {} song"),
        ("jazz", "rock", "folk", "soul", "blues", "opera"),
    ),
    "weather": (
        ("will it rain in {}", "how is the weather in {}", "is it cold in {} today"),
        ("paris", "london", "rome", "oslo", "berlin", "madrid"),
    ),
    "light": (
        ("turn on the light in the {}", "make the {} bright", "the {} is too dark"),
        ("kitchen", "garden", "bedroom", "hall", "garage", "office"),
    ),
    "alarm": (
        ("wake me at {}", "set an alarm for {}", "i have to get up at {}"),
        ("five", "six", "seven", "eight", "nine", "ten"),
    ),
    "call": (
        ("call {} now", "please ring {}", "i must talk to {}"),
        ("anna", "peter", "mary", "tom", "david", "lucy"),
    ),
    "order": (
        ("order a {}", "get me one {}", "we need more {}"),
        ("pizza", "coffee", "bread", "milk", "salad", "soup"),
    ),
}
"""Intent -> patterns and values."""
REMARKS: dict[str, tuple[str, ...]] = {
    "neutral": ("",),
    "positive": (" thank you", " that is great"),
    "negative": (" this is awful", " i am angry"),
}
"""Sentiment -> what stands behind a command."""
KINDS: dict[str, tuple[str, str]] = {
    "transcription": ("write down what is said", "give the exact words"),
    "repetition": ("say it again", "repeat the message"),
    "intent": ("what does the speaker want", "name the purpose"),
    "keyword": ("which word matters most", "name the key word"),
    "sentiment": ("how does the speaker feel", "name the mood"),
}
"""Kind -> two wordings."""
ASKED = ("intent", "keyword", "sentiment")
"""Kinds whose answer is not the transcript."""
BEGIN, END, PAD = "<s>", "</s>", "<pad>"
TEMPLATE = Template(
    f"{BEGIN} user {{instruction}} speech :",
    "assistant :",
    f"{BEGIN} user {{instruction}} : {{transcript}} assistant :",
)


class Sentence(NamedTuple):
    """A command and what it means."""

    text: str
    intent: str
    value: str
    sentiment: str


def sentences() -> list[Sentence]:
    """All that can be said."""
    return [
        Sentence(pattern.format(value) + remark, intent, value, sentiment)
        for intent, (patterns, values) in COMMANDS.items()
        for pattern in patterns
        for value in values
        for sentiment, remarks in REMARKS.items()
        for remark in remarks
    ]


def answer(sentence: Sentence, kind: str) -> str:
    """The right answer to an instruction of a kind; it ends in a full stop."""
    words = {
        "transcription": sentence.text,
        "repetition": sentence.text,
        "intent": sentence.intent,
        "keyword": sentence.value,
        "sentiment": sentence.sentiment,
    }
    return f"{words[kind]} ."


def spoken_words() -> list[str]:
    """Every word that a sentence can have, in a fixed order."""
    return list(dict.fromkeys(word for one in sentences() for word in one.text.split()))


class Vocabulary(NamedTuple):
    """Words and their numbers."""

    words: tuple[str, ...]

    def encode(self, text: str) -> list[int]:
        """Numbers of words with spaces between them."""
        known = {word: number for number, word in enumerate(self.words)}
        return [known[word] for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        """Words up to the end, without special ones."""
        found = []
        for number in ids:
            word = self.words[number]
            if word == END:
                break
            if word not in (BEGIN, PAD):
                found.append(word)
        return " ".join(found)

    @property
    def pad(self) -> int:
        """The number of what stands behind a text."""
        return 0

    @property
    def end(self) -> int:
        """The number of what ends an answer."""
        return 2


def vocabulary() -> Vocabulary:
    """All words of sentences, instructions and answers."""
    texts = [wording for wordings in KINDS.values() for wording in wordings]
    answers = [answer(one, kind) for one in sentences() for kind in KINDS]
    words = [word for text in (*texts, *answers) for word in text.split()]
    special = [PAD, BEGIN, END, "user", "speech", "assistant", ":", "."]
    return Vocabulary(tuple(dict.fromkeys([*special, *words])))


def split_sentences(seed: int, share: float) -> tuple[list[Sentence], list[Sentence]]:
    """Sentences that are heard in training, and others, whose words are all heard there.

    Args:
        seed: of NumPy's generator.
        share: of the sentences that are kept back.

    Returns:
        Both lists, in random order.
    """
    everything = sentences()
    order = np.random.default_rng(seed).permutation(len(everything))
    shuffled = [everything[place] for place in order]
    cut = round(share * len(shuffled))
    return shuffled[cut:], shuffled[:cut]
