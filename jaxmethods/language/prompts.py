"""From questions to the texts a model reads: template, instruction, question, candidate.

A prompt is the model's template filled with an instruction and the question; a candidate is
stripped and ends with a full stop; a sequence is prompt, one space, candidate. Prompt and candidate
are tokenized as one text, since tokenizers may merge over the border. No examples, no letters: each
candidate is read without the others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxmethods.config import ConfigError
from jaxmethods.data.mcq import Question
from jaxmethods.data.tokenizer import Tokenize
from jaxmethods.errors import UserError

FIELD = re.compile(r"\{(\w+)\}")


class PromptSpec(NamedTuple):
    """How texts are built; {fields} are replaced, all else stands as it is."""

    template: str = "{instruction}\n{question}"
    """{instruction}, {question} (which `question_format` made)."""
    instruction: str = ""
    question_format: str = "{question}"
    """{question}, {context}, {target}."""
    choice_format: str = "{choice}"
    """{choice}."""


class Tokenized(NamedTuple):
    """Questions as token ids."""

    sequences: list[list[list[int]]]
    """The whole sequence of each candidate of each question."""
    prompt_lengths: list[int]
    """How many tokens of each question's sequences are surely prompt."""


def clean_choice(choice: str) -> str:
    """Stripped, with a full stop at the end.

    Args:
        choice: text of a candidate.

    Returns:
        The text, stripped, that ends with a full stop.
    """
    choice = choice.strip()
    return choice if choice.endswith(".") else f"{choice}."


def render_prompt(spec: PromptSpec, question: Question) -> str:
    """The text before the candidate. Raises `ConfigError` for an unknown {field}."""
    parts = {"question": question.question, "context": question.context, "target": question.target}
    asked = _fill(spec.question_format, parts, "question")
    whole = {"instruction": spec.instruction, "question": asked}
    return _fill(spec.template, whole, "template")


def render(spec: PromptSpec, question: Question) -> list[str]:
    """The texts of a question, one for each candidate.

    Args:
        spec: template, instruction and formats.
        question: a question with its candidates.

    Returns:
        "prompt candidate" for every candidate.
    """
    prompt = render_prompt(spec, question)
    formatted = [_fill(spec.choice_format, {"choice": c}, "choice") for c in question.choices]
    return [f"{prompt} {clean_choice(choice)}" for choice in formatted]


def tokenize_questions(
    tokenize: Tokenize,
    spec: PromptSpec,
    questions: Sequence[Question],
    *,
    vocab_size: int,
    max_positions: int,
) -> Tokenized:
    """Token ids of all sequences, checked against the model before any of them is run.

    Args:
        tokenize: texts -> token ids of each.
        spec: template and instruction.
        questions: with their candidates.
        vocab_size: tokens that the model has.
        max_positions: the longest sequence that it takes.

    Returns:
        Ids of every candidate's sequence by question, and how many tokens all of a question's share
        with its prompt.

    Raises:
        UserError: a token that the model doesn't have, a sequence that is longer than its
            positions, or none at all; names the question.
    """
    texts = [render(spec, question) for question in questions]
    prompts = tokenize([render_prompt(spec, question) for question in questions])
    flat = iter(tokenize([text for question in texts for text in question]))
    sequences = [[next(flat) for _ in question] for question in texts]
    lengths = []
    for question, prompt, candidates in zip(questions, prompts, sequences, strict=True):
        for ids in candidates:
            _check(question, ids, vocab_size, max_positions)
        lengths.append(common_prefix([prompt, *candidates]))
    return Tokenized(sequences, lengths)


def canonical_labels(sequences: Sequence[Sequence[Sequence[int]]], labels: Sequence[int]) -> list:
    """Labels that name the first of equal candidates, as predictions do."""
    pairs = zip(sequences, labels, strict=True)
    return [list(question).index(question[label]) for question, label in pairs]


def common_prefix(sequences: Sequence[Any]) -> int:
    """How many leading tokens all sequences share."""
    first, last = min(sequences), max(sequences)  # in lexicographic order: the least alike
    for place, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return place
    return min(len(first), len(last))


def _fill(text: str, fields: Mapping[str, str], name: str) -> str:
    def value(match: re.Match) -> str:
        if match[1] not in fields:
            known = ", ".join(f"{{{field}}}" for field in fields)
            raise ConfigError(f"prompt.{name}: expected fields among {known}, got {match[0]}")
        return fields[match[1]]

    return FIELD.sub(value, text)


def _check(question: Question, ids: Sequence[int], vocab_size: int, max_positions: int) -> None:
    if not ids:
        raise UserError(f"question {question.id}: the tokenizer made no tokens of it")
    if max(ids) >= vocab_size or min(ids) < 0:
        raise UserError(
            f"question {question.id}: the tokenizer does not fit the model: token {max(ids)}, "
            f"but its vocabulary has {vocab_size}"
        )
    if len(ids) > max_positions:
        raise UserError(
            f"question {question.id}: {len(ids)} tokens are more than the model's {max_positions} "
            "positions; remove the question or use a model with a longer context"
        )
