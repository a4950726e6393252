"""A report on a language model's folder and a text; `diagnosis` is what the command line runs.

Every sequence of tokens is an example, its loss the mean cross entropy of its next tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmethods.config import ConfigError
from jaxmethods.data.tokenizer import byte_tokenizer, load_tokenizer
from jaxmethods.errors import DataError
from jaxmethods.files import refusals
from jaxmethods.interpret.config import ReportRun as Run
from jaxmethods.interpret.losses import cross_entropy
from jaxmethods.interpret.problem import Data, make_problem
from jaxmethods.interpret.recipes.rows import STAGE, Subject, rows_stage, write_report
from jaxmethods.models import decoder
from jaxmethods.models.hub import open_folder
from jaxmethods.stages import Recipe, Results

SEQUENCES, TOGETHER = 32, 8
"""Sequences of each text, and those that are in memory together, where the config doesn't say."""


def recipe(run: Run) -> Recipe:
    """One stage, a part a row.

    Raises:
        HubError: a folder that cannot be used.
        ConfigError: no text.
        FileError, DataError: see `read_texts`.
    """
    config = decoder.read_config(open_folder(run.model))
    batches = read_texts(run, config.vocab_size)
    apply = next_token_logits(config)

    def subjects(results: Results) -> list[Subject]:
        del results
        params = decoder.load(run.model)[1]
        own, held_out = (make_problem(apply, cross_entropy, params, b, True) for b in batches)
        return [Subject(own, held_out)]

    headline = tuple(f"{STAGE}/{name}" for name in ("train_loss", "gap", "largest_eigenvalue"))
    stage = rows_stage(subjects, run.seed, run.level)
    return Recipe([stage], write_report, reads=(STAGE,), headline=headline)


def next_token_logits(config: decoder.DecoderConfig) -> Callable[[Any, jax.Array], jax.Array]:
    """(params, ids [B, T]) -> logits [B, T, V]."""

    def apply(params: Any, ids: jax.Array) -> jax.Array:
        return decoder.forward(params, config, ids).logits

    return apply


def read_texts(run: Run, vocabulary: int) -> tuple[Data, Data]:
    """Microbatches [K, B, T] of the text and of the held-out one.

    Raises:
        ConfigError: no text.
        FileError: a text that can't be read.
        DataError: a text that is not UTF-8, is too short for two sequences, or has tokens that
            the model doesn't know.
    """
    if run.data is None:
        raise ConfigError("data: expected a text, for a model folder, got none")
    tokenize = byte_tokenizer if run.tokenizer == "bytes" else load_tokenizer(run.model)
    (ids,) = tokenize([_read(run.data)])
    if run.held_out is None:
        middle = len(ids) // 2
        both = [(ids[:middle], run.data), (ids[middle:], run.data)]
    else:
        (others,) = tokenize([_read(run.held_out)])
        both = [(ids, run.data), (others, run.held_out)]
    own, held_out = (_batches(run, np.asarray(own), path, vocabulary) for own, path in both)
    return own, held_out


def _read(path: Path) -> str:
    with refusals(f"data {path}", "read"):
        content = path.read_bytes()
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"data {path}: expected UTF-8, got a byte at {error.start}") from error


def _batches(run: Run, ids: np.ndarray, path: Path, vocabulary: int) -> Data:
    length = run.tokens + 1
    count = min(run.examples or SEQUENCES, len(ids) // length)
    if count < 2:
        raise DataError(
            f"data {path}: expected at least {2 * length} tokens for two sequences, got {len(ids)}"
        )
    if ids.max() >= vocabulary:
        raise DataError(
            f"data {path}: expected tokens below the model's {vocabulary}, got {ids.max()}"
        )
    size = min(run.batch or TOGETHER, count)
    rows = ids[: count * length].reshape(count, length).astype(np.int32)
    rows = rows[: count // size * size].reshape(-1, size, length)  # [K, B, T + 1]
    return Data(rows[..., :-1], rows[..., 1:])
