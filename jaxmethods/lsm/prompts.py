"""Prompts of a speech-text model, and the text prompts that write its training data.

For Vicuna, byte by byte as in the published training (evaluation there misspelled the tag):

    BOS system "\\n\\nUSER: " instruction "\\nSPEECH:"  <speech tokens>  "\\nASSISTANT:"
    response EOS

The instruction comes before the speech. The suffix is written by the tokenizer on its own, without
its first token; the response likewise, with the end token. A text-only prompt has the transcript in
the place of the speech, so that a model's answer to it is a training target for the audio.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxmethods.lsm.model import IGNORED

Encode = Callable[[str], list[int]]
"""A text -> its ids, with what the tokenizer puts in front of it."""


class Template(NamedTuple):
    """Where instruction, speech and response stand."""

    prefix: str
    """With {instruction}."""
    suffix: str
    """Between speech and response."""
    text_prompt: str
    """With {instruction} and {transcript}: what the language model answers in training data."""

    def render_prefix(self, instruction: str) -> str:
        """What comes before the speech."""
        return self.prefix.replace("{instruction}", instruction)

    def render_text_prompt(self, instruction: str, transcript: str) -> str:
        """The same question about a transcript."""
        text = self.text_prompt.replace("{instruction}", instruction)
        return text.replace("{transcript}", transcript)


VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. "
)
VICUNA = Template(
    f"{VICUNA_SYSTEM}\n\nUSER: {{instruction}}\nSPEECH:",
    "\nASSISTANT:",
    f"{VICUNA_SYSTEM}\n\nUSER: {{instruction}}: {{transcript}} \nASSISTANT:",
)
_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
LLAMA3 = Template(
    "<|begin_of_text|>"
    + _HEADER.format("system")
    + "You are a helpful assistant<|eot_id|>"
    + _HEADER.format("user")
    + "{instruction}\nspeech:",
    "<|eot_id|>" + _HEADER.format("assistant"),
    "<|begin_of_text|>"
    + _HEADER.format("system")
    + "You are a helpful assistant<|eot_id|>"
    + _HEADER.format("user")
    + "{instruction}: {transcript}<|eot_id|>"
    + _HEADER.format("assistant"),
)
"""The beginning of a text is part of the template: a tokenizer that adds one makes it two."""
PLAIN = Template("{instruction}\n", "\n", "{instruction}: {transcript}\n")
"""For language models that were never taught to chat."""
TEMPLATES = {"vicuna": VICUNA, "llama3": LLAMA3, "plain": PLAIN}


class Rendered(NamedTuple):
    """A row as ids."""

    prefix: list[int]
    suffix: list[int]
    """The assistant's tag, then the response with its end."""
    labels: list[int]
    """The response where it stands in the suffix, `IGNORED` before."""


def render(
    instruction: str,
    response: str,
    encode: Encode,
    *,
    template: Template = VICUNA,
    end: str = "</s>",
    begin: bool = True,
) -> Rendered:
    """A training row as ids.

    Args:
        instruction: what is asked.
        response: what is answered.
        encode: the tokenizer.
        template: the layout.
        end: the text of the end token; the response is written with it.
        begin: whether `encode` puts a first token in front of each text, which suffix and response
            lose, and a text that begins with one of its own.

    Returns:
        Ids of prefix and suffix, and labels.
    """
    prefix = _once(encode(template.render_prefix(instruction)), begin)
    tag = encode(template.suffix)[int(begin) :]
    answer = encode(response + end)[int(begin) :]
    return Rendered(prefix, tag + answer, [IGNORED] * len(tag) + answer)


def keeps_length(labels: Sequence[int], shortest: int = 6, longest: int = 2047) -> bool:
    """Whether a response, its end included, is as long as it must be to be learned from.

    The published limits drop every short answer; our own configs begin at 1.

    Args:
        labels: of `render`.
        shortest: the fewest ids that stay.
        longest: the most ids that stay.
    """
    return shortest <= sum(label != IGNORED for label in labels) <= longest


def padded(rows: Sequence[Sequence[int]], pad: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids as one array, padded on the right.

    Args:
        rows: ids.
        pad: what stands behind them.
        length: of the array's rows.

    Returns:
        [B, length] int32, and which are a row's own.

    Raises:
        ValueError: a row is longer.
    """
    longest = max(map(len, rows), default=0)
    if longest > length:
        raise ValueError(f"length: expected at least the longest row's {longest}, got {length}")
    ids = np.full((len(rows), length), pad, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        mask[place, : len(row)] = True
    return ids, mask


def _once(ids: list[int], begin: bool) -> list[int]:
    """Ids with one first token, where the text has it as well as the tokenizer."""
    doubled = begin and len(ids) > 1 and ids[0] == ids[1]
    return ids[1:] if doubled else ids
