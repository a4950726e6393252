"""From token sequences to norms and likelihoods of all candidates of a set of questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmethods.models.decoder.config import DecoderConfig
from jaxmethods.models.decoder.layer import Params
from jaxmethods.novo.norms import (
    Order,
    Root,
    Tokens,
    row_log_likelihoods,
    row_norms,
    run_root,
    sequence_norms,
)
from jaxmethods.novo.tree import Sequences, Tree, build_tree, candidate_starts, plan_batches

Mode = Literal["tree", "packed", "naive"]
"""Share instruction and question; share the question; share nothing."""
NAIVE_SHAPES = 12

_run_root = jax.jit(run_root, static_argnames=("config", "residual", "dtype"))
_row_norms = jax.jit(row_norms, static_argnames=("config", "order", "tokens", "dtype"))
_row_log_likelihoods = jax.jit(row_log_likelihoods, static_argnames=("config", "dtype"))
_sequence_norms = jax.jit(sequence_norms, static_argnames=("config", "order", "dtype"))


class Scores(NamedTuple):
    """Scores of Q questions with up to C candidates."""

    norms: np.ndarray
    """[Q, C, L H] float32; 0 where there is no candidate."""
    mask: np.ndarray
    """[Q, C] bool: which candidates there are."""
    likelihood: np.ndarray | None
    """[Q, C] float32: log-probability of the candidate's tokens; None if it wasn't asked for."""
    lengths: np.ndarray | None
    """[Q, C] int: how many tokens that sum has."""


class Part(NamedTuple):
    """The scores of one batch, on the device until they are asked for."""

    norms: jax.Array
    """[B, C, L H] for distinct candidates."""
    likelihood: jax.Array | None
    lengths: jax.Array | None


def score(
    params: Params,
    config: DecoderConfig,
    sequences: Sequences,
    *,
    mode: Mode = "tree",
    prompt_lengths: Sequence[int] | None = None,
    likelihood: bool = False,
    order: Order = "2",
    tokens: Tokens = "last",
    dtype: Any = None,
    batch_tokens: int = 2048,
    mesh: Mesh | None = None,
) -> Scores:
    """Norms (and log-likelihoods) of all candidates; see `norms` and `tree`.

    Args:
        params: parameters of the decoder.
        config: sizes and family of the decoder.
        sequences: token ids of every candidate of every question.
        mode: what is shared; the numbers are those of one row for each candidate. Where dynamic
            frequencies make every token depend on the length of its sequence, nothing is shared.
        prompt_lengths: tokens of each question's prompt; None: what its candidates share.
        likelihood: score candidates by their log-likelihood too.
        order: of the norm: "1", "2" or "inf".
        tokens: norms at the last token of a candidate, or averaged over its tokens.
        dtype: of the computation; None: of the parameters.
        batch_tokens: roughly the number of tokens that are run at once.
        mesh: split batches over its axis "data".

    Returns:
        Norms [Q, C, HL] float32 with their mask, and likelihoods where they are asked for.

    Raises:
        ValueError: norms that are not finite.
    """
    if mode == "naive":
        if likelihood or tokens != "last":
            raise ValueError("mode: naive reads norms at the last token only")
        return _score_naive(params, config, sequences, order, dtype, batch_tokens)
    settings = {"likelihood": likelihood, "order": order, "tokens": tokens, "dtype": dtype}

    def scores(sequences: Sequences, starts: Sequence[int] | None, share_root: bool) -> Scores:
        tree = build_tree(sequences, starts, share_root=share_root, batch_tokens=batch_tokens)
        parts = list(score_batches(params, config, tree, mesh=mesh, **settings))
        return _gather(tree, jax.device_get(parts))

    longest = max((len(s) for question in sequences for s in question), default=0)
    if not _depends_on_length(config, longest):
        return _finite(scores(sequences, prompt_lengths, mode == "tree"))
    alone = [[sequence] for question in sequences for sequence in question]
    starts = candidate_starts(sequences, prompt_lengths)
    each = [start for start, question in zip(starts, sequences, strict=True) for _ in question]
    numbers = [len(question) for question in sequences]
    return _finite(_by_question(scores(alone, each, False), numbers))


def score_batches(
    params: Params,
    config: DecoderConfig,
    tree: Tree,
    *,
    likelihood: bool = False,
    order: Order = "2",
    tokens: Tokens = "last",
    dtype: Any = None,
    mesh: Mesh | None = None,
    first: int = 0,
) -> Iterator[Part]:
    """The scores of the tree's batches, from batch `first` on, as they are dispatched.

    Args:
        params: the decoder's.
        config: the decoder's.
        tree: the sequences, as batches of rows.
        likelihood: also the candidates' log-likelihoods.
        order: of the norm.
        tokens: read at the last token, or averaged over the candidate's own.
        dtype: of the computation; None: the embeddings'.
        mesh: rows are split over its axis `data`, where it divides them.
        first: the batch to begin with.

    Yields:
        Norms [B, C, L H] float32 of each batch, and its log-likelihoods [B, C].

    Raises:
        ValueError: candidates that share tokens whose frequencies depend on their lengths.
    """
    longest = max((int(rows.positions.max()) + 1 for rows in tree.batches), default=0)
    sharing = tree.root_length > 0 or any(rows.ends.shape[1] > 1 for rows in tree.batches)
    if sharing and _depends_on_length(config, longest):
        raise ValueError(
            f"tree: sequences of up to {longest} tokens are longer than max_positions "
            f"({config.max_positions}), and dynamic frequencies then depend on the length of each; "
            "expected one candidate in each row and no root, as `score` makes them"
        )
    length = jnp.int32(tree.root_length)
    root: Root = _run_root(params, config, tree.root, length, residual=likelihood, dtype=dtype)
    for rows in tree.batches[first:]:
        if mesh is not None:
            split = "data" if rows.ids.shape[0] % mesh.shape["data"] == 0 else None
            rows = jax.device_put(rows, NamedSharding(mesh, PartitionSpec(split)))
        norms = _row_norms(params, config, root, rows, order=order, tokens=tokens, dtype=dtype)
        likelihoods = (None, None)
        if likelihood:
            likelihoods = _row_log_likelihoods(params, config, root, rows, dtype=dtype)
        yield Part(norms, *likelihoods)


def collect(tree: Tree, parts: Sequence[Part]) -> Scores:
    """Puts the batches' scores (on the host) where their questions and candidates are.

    Raises:
        ValueError: norms that are not finite.
    """
    return _finite(_gather(tree, parts))


def _gather(tree: Tree, parts: Sequence[Part]) -> Scores:
    questions, mask = tree.slots.shape[0], tree.slots >= 0
    place = np.where(mask, tree.slots, 0)

    def gather(field: str) -> Any:
        values = [np.asarray(getattr(part, field)) for part in parts]
        distinct = np.zeros((questions, *values[0].shape[1:]), values[0].dtype)
        for where, value in zip(tree.questions, values, strict=True):
            distinct[where[where >= 0]] = value[where >= 0]
        spread = distinct[np.arange(questions)[:, None], place]
        # [Q, C, ...]
        return np.where(mask.reshape(mask.shape + (1,) * (spread.ndim - 2)), spread, 0)

    norms = gather("norms")
    if parts[0].likelihood is None:
        return Scores(norms, mask, None, None)
    return Scores(norms, mask, gather("likelihood"), gather("lengths"))


def _finite(scores: Scores) -> Scores:
    if not np.isfinite(scores.norms).all():
        where = int(np.argwhere(~np.isfinite(scores.norms))[0][0])
        raise ValueError(f"norms of question {where} are not finite")
    return scores


def _depends_on_length(config: DecoderConfig, length: int) -> bool:
    """Whether tokens of sequences so long turn by angles that the whole length decides."""
    scaling = config.rope_scaling
    return scaling is not None and scaling.kind == "dynamic" and length > config.max_positions


def _by_question(scores: Scores, candidates: Sequence[int]) -> Scores:
    """Scores [N, 1] of all candidates, as those of questions with `candidates` each."""
    mask = np.arange(max(candidates)) < np.asarray(candidates)[:, None]

    def placed(values: np.ndarray | None) -> Any:
        if values is None:
            return None
        spread = np.zeros((*mask.shape, *values.shape[2:]), values.dtype)
        spread[mask] = values[:, 0]
        return spread

    return Scores(*(placed(values) for values in scores))


def _score_naive(
    params: Params,
    config: DecoderConfig,
    sequences: Sequences,
    order: Order,
    dtype: Any,
    batch_tokens: int,
) -> Scores:
    """One row for each distinct candidate, those of similar length together."""
    tree = build_tree(sequences, share_root=False)
    flat = list(dict.fromkeys(tuple(s) for question in sequences for s in question))
    every = np.array([len(sequence) for sequence in flat])
    found, places = [], []
    for chosen, rows, width in plan_batches(every, batch_tokens, NAIVE_SHAPES):
        ids, lengths = np.zeros((rows, width), np.int32), np.ones(rows, np.int32)
        lengths[: len(chosen)] = every[chosen]
        for row, place in zip(ids, chosen, strict=False):
            row[: every[place]] = flat[place]
        found.append(_sequence_norms(params, config, ids, lengths, order=order, dtype=dtype))
        places.append(chosen)
    by_sequence = {
        flat[place]: norms
        for chosen, batch in zip(places, jax.device_get(found), strict=True)
        for place, norms in zip(chosen, batch, strict=False)
    }
    norms = np.zeros((*tree.slots.shape, config.layers * config.heads), np.float32)
    for place, question in enumerate(sequences):
        for number, sequence in enumerate(question):
            norms[place, number] = by_sequence[tuple(sequence)]
    return _finite(Scores(norms, tree.slots >= 0, None, None))
