"""Questions as arrays: prompts, responses, and which of their tokens count."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmethods.data.bpe import train_bpe
from jaxmethods.data.tokenizer import Tokenizer, own_tokenizer
from jaxmethods.errors import UserError
from jaxmethods.kid.config import DataConfig, DistillRun
from jaxmethods.kid.loss import Batch
from jaxmethods.kid.recipes.models import Models
from jaxmethods.kid.recipes.questions import Questions
from jaxmethods.sql.readers import Example
from jaxmethods.stages import Results

BUCKET = 8
"""Lengths are multiples of it, so that data of similar length share programs."""
SCHEMA_WEIGHT = 20
"""How often each schema is read by the training of byte pairs."""


LEARNED = ""
"""What is trained on, beside the names of judged splits."""


class Asked(NamedTuple):
    """A judged split."""

    examples: list[Example]
    prompts: np.ndarray
    """[Q, P] int32, padded on the left."""
    mask: np.ndarray
    """[Q, P] bool."""


class Texts(NamedTuple):
    """A run's questions, written for its models."""

    questions: Questions
    tokenizer: Tokenizer
    train: Batch
    """[N, ...] of numpy."""
    judged: dict[str, Asked]
    cut: dict[str, int]
    """How many prompts and responses were too long and lost some tokens."""


class Material:
    """What a run trains on and asks; made once its data is there."""

    def __init__(self, run: DistillRun, models: Models):
        """Reads a folder that the run names, and checks it; a generated one is made later."""
        self.run, self.models = run, models
        self._texts = cache(self._make)
        self._latest: Texts | None = None
        if run.data.path is not None:
            questions = Questions(run, run.data.path)
            questions.check()
            self._texts(run.data.path)

    def texts(self, results: Results) -> Texts:
        """Reads `results["world"]`, or the folder that the run names."""
        self._latest = self._texts(Path(self.run.data.path or results["world"]))
        return self._latest

    def latest(self) -> Texts:
        """What the run's stages were given: judges are given no results."""
        assert self._latest is not None
        return self._latest

    def _make(self, folder: Path) -> Texts:
        questions = Questions(self.run, folder)
        learned, asked = questions.splits()
        tokenizer = self.models.tokenizer or _learn(self.run, questions)
        splits = {LEARNED: learned, **asked}
        prompts = {name: questions.prompts(examples) for name, examples in splits.items()}
        encoded = {name: encode_prompts(tokenizer, own) for name, own in prompts.items()}
        queries = [example.query for example in learned]
        responses = [[*ids, tokenizer.end] for ids in tokenizer.encode(queries)]
        data = self.run.data
        once = [own for name, own in encoded.items() if name != data.train]
        cut = {
            "prompts": sum(len(ids) > data.max_input for own in once for ids in own),
            "responses": sum(len(ids) > data.max_output for ids in responses),
        }
        kept = {name: [shortened(ids, data) for ids in own] for name, own in encoded.items()}
        self._check(kept, responses)
        # Other databases may have longer prompts, which training need not pay for.
        longest = _bucket(max(len(ids) for name in asked for ids in kept[name]))
        end = tokenizer.end
        judged = {
            name: Asked(own, *padded_left(kept[name], longest, end)) for name, own in asked.items()
        }
        length = _bucket(max(map(len, kept[LEARNED])))
        train = batch_of(kept[LEARNED], responses, length, data.max_output, end)
        return Texts(questions, tokenizer, train, judged, cut)

    def _check(self, prompts: dict[str, list[list[int]]], responses: list[list[int]]) -> None:
        largest = max(max(map(max, own)) for own in (*prompts.values(), responses))
        if largest >= self.models.vocabulary:
            raise UserError(
                f"tokenizer: does not fit the model: token {largest}, but its vocabulary has "
                f"{self.models.vocabulary}"
            )
        fits = [self.run.fit.batch, self.run.teacher.fit.batch]
        if len(responses) < max(fits):
            raise UserError(
                f"fit.batch: expected at most the {len(responses)} questions of the split "
                f"{self.run.data.train!r}, got {max(fits)}"
            )


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Ids of prompts, with the token that a text begins with, if there is one."""
    first = [] if tokenizer.begin is None else [tokenizer.begin]
    return [first + ids for ids in tokenizer.encode(prompts)]


def shortened(ids: list[int], data: DataConfig) -> list[int]:
    """A prompt of at most `max_input` tokens: the first one and the last."""
    if len(ids) <= data.max_input:
        return ids
    return [ids[0], *ids[len(ids) - data.max_input + 1 :]]


def padded_left(
    rows: Sequence[Sequence[int]], length: int, pad: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Ids [n, length] int32 and mask [n, length] bool, padding first."""
    ids = np.full((len(rows), length), pad, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for number, row in enumerate(rows):
        ids[number, length - len(row) :] = row
        mask[number, length - len(row) :] = True
    return ids, mask


def batch_of(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    length: int,
    max_output: int,
    pad: int = 0,
) -> Batch:
    """Examples [n, ...] of numpy.

    Args:
        prompts: ids, at most `length` each.
        responses: ids with their end token; what is longer than `max_output` loses its end.
        length: P.
        max_output: R at the most.
        pad: the token of padding, which may be the end token: what counts follows from lengths.

    Returns:
        prompts padded on the left, responses on the right.
    """
    longest = min(max_output, _bucket(max(map(len, responses))))
    ids = np.full((len(responses), longest), pad, np.int32)
    counted = np.zeros((len(responses), longest), bool)
    maskable = np.zeros((len(responses), longest), bool)
    for number, row in enumerate(responses):
        own = row[:longest]
        ids[number, : len(own)] = own
        counted[number, : len(own)] = True
        # The end of a whole response; a cut one has none, and its last token influences nothing.
        maskable[number, : len(own) - 1] = True
    arrays: list[Any] = [*padded_left(prompts, length, pad), ids, counted, maskable]
    return Batch(*arrays)


def _learn(run: DistillRun, questions: Questions) -> Tokenizer:
    """Byte pairs of the training questions, their queries and their databases."""
    train = questions.splits().train
    databases = sorted({example.database for example in train})
    texts = questions.describe(databases) * SCHEMA_WEIGHT
    texts += [example.text for example in train] + [example.query for example in train]
    return own_tokenizer(train_bpe(texts, run.data.vocabulary))


def _bucket(length: int) -> int:
    return -(-length // BUCKET) * BUCKET
