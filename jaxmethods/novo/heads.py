"""Which attention heads vote, and how they vote.

Every head ranks the C candidates of a question by the norm of its output; it may vote for the
largest or for the smallest. On n labeled questions, c_0[h] counts how often the largest norm of
head h is the right candidate's, c_1[h] how often the smallest is. A head votes for the largest if
c_0[h] lies above the q-quantile of c_0 over all heads, for the smallest if c_1[h] lies above that
of c_1, and not at all if both hold. The candidate with most votes is the answer.

Ho et al., "NoVo: Norm Voting off Hallucinations with Attention Heads in Large Language Models",
ICLR 2025, arXiv 2410.08970. Heads are numbered layer * H + head; ties go to the first index, in a
head's vote and in the election. Everything here is pure, jittable and mappable.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.errors import UserError
from jaxmethods.numerics.predictions import NOTHING

Rule = Literal["code", "paper"]
Voters = Literal["both", "max", "min"]


class Heads(NamedTuple):
    """Who votes."""

    max_mask: jax.Array
    """[HL] bool: heads that vote for the candidate with the largest norm."""
    min_mask: jax.Array
    """[HL] bool: heads that vote for the candidate with the smallest norm."""
    ok: jax.Array
    """[] bool: whether there is any; without one, predictions are -1."""


class Choices(NamedTuple):
    """The candidate that each head would choose, the first one of equals."""

    largest: jax.Array
    """[..., HL] int32: argmax of the norms over the candidates; -1 where all are NaN."""
    smallest: jax.Array
    """[..., HL] int32: argmin."""


def choices(norms: jax.Array, mask: jax.Array) -> Choices:
    """Each head's choice among candidates.

    Args:
        norms: [..., C, HL]; NaN is never chosen.
        mask: [..., C] bool: which candidates there are.

    Returns:
        The candidates; `NOTHING` of a head that has no number.
    """
    mask = mask[..., None] & ~jnp.isnan(norms)
    largest = jnp.argmax(jnp.where(mask, norms, -jnp.inf), axis=-2)
    smallest = jnp.argmin(jnp.where(mask, norms, jnp.inf), axis=-2)
    known = jnp.any(mask, axis=-2)
    return Choices(
        *(jnp.where(known, one, NOTHING).astype(jnp.int32) for one in (largest, smallest))
    )


def correct_counts(norms: jax.Array, mask: jax.Array, labels: jax.Array) -> jax.Array:
    """How often each head's largest (row 0) and smallest (row 1) norm is right, [2, HL] int32.

    Args:
        norms: [n, C, HL] of n labeled questions.
        mask: [n, C] bool.
        labels: [n] int.

    Returns:
        [2, HL] int32.
    """
    chosen = choices(norms, mask)
    right = jnp.stack([picked == labels[:, None] for picked in chosen])  # [2, n, HL]
    return jnp.sum(right, axis=1, dtype=jnp.int32)


def select_heads(
    counts: jax.Array, q: float = 0.85, *, rule: Rule = "code", voters: Voters = "both"
) -> Heads:
    """Chooses the voters from counts [2, HL].

    Counts are integers, so both rules are comparisons with an order statistic: nothing lies
    between two neighboring ones, and no interpolated quantile has to be rounded.

    Args:
        counts: [2, HL] int32, see `correct_counts`.
        q: quantile in [0, 1]; static.
        rule: `code`: a threshold for each direction, strictly above, heads in both dropped (this
            is how the published lists of heads were made). `paper`: a head has the direction it
            is better at (largest on ties) and votes if its count reaches the q-quantile of these
            counts.
        voters: let only one direction vote.

    Returns:
        Which heads vote, and in which direction.
    """
    if not 0 <= q <= 1:
        raise ValueError(f"q: expected a quantile in [0, 1], got {q}")
    if not counts.shape[-1]:
        nobody = jnp.zeros(0, bool)
        return Heads(nobody, nobody, jnp.bool_(False))
    place = q * (counts.shape[-1] - 1)
    if rule == "code":
        threshold = jnp.sort(counts, axis=-1)[..., math.floor(place + 1e-9)]
        above = counts > threshold[..., None]
        both = above[0] & above[1]
        max_mask, min_mask = above[0] & ~both, above[1] & ~both
    elif rule == "paper":
        score = jnp.max(counts, axis=0)
        reached = score >= jnp.sort(score)[math.ceil(place - 1e-9)]
        by_smallest = counts[1] > counts[0]
        max_mask, min_mask = reached & ~by_smallest, reached & by_smallest
    else:
        raise ValueError(f"rule: expected code or paper, got {rule!r}")
    if voters not in get_args(Voters):
        raise ValueError(f"voters: expected both, max or min, got {voters!r}")
    max_mask = max_mask & (voters != "min")
    min_mask = min_mask & (voters != "max")
    return Heads(max_mask, min_mask, jnp.any(max_mask | min_mask))


def vote(
    norms: jax.Array, mask: jax.Array, heads: Heads, weights: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """One question: norms [C, HL], mask [C] -> votes [C] and the prediction [] int32.

    Args:
        norms: [C, HL].
        mask: [C] bool: which candidates there are.
        heads: the voters.
        weights: [HL]: a head's vote counts so much; default 1 (then votes are int32).

    Returns:
        Votes [C] int32 (float32 with weights) and the prediction [] int32; -1 without voters.
    """
    return count_votes(choices(norms, mask), mask, heads, weights)


def count_votes(
    chosen: Choices, mask: jax.Array, heads: Heads, weights: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """As `vote`, from the heads' choices: what many elections on the same norms share.

    Args:
        chosen: [..., HL], each head's choices.
        mask: [..., C] bool: which candidates there are.
        heads: who votes.
        weights: [HL] of the votes; None: one each.

    Returns:
        Votes [..., C] (int32 without weights) and the elected candidate [...] int32, -1 without
        voters.
    """
    candidates = jnp.arange(mask.shape[-1])[:, None]
    for_largest = (chosen.largest == candidates).astype(jnp.float32)  # [C, HL]
    for_smallest = (chosen.smallest == candidates).astype(jnp.float32)
    weight = 1.0 if weights is None else weights
    # Products of matrices, so that mapping over many selections stays one.
    votes = for_largest @ (heads.max_mask * weight) + for_smallest @ (heads.min_mask * weight)
    if weights is None:
        votes = jnp.round(votes).astype(jnp.int32)
    return votes, jnp.where(heads.ok, largest_of(votes, mask), -1)


def largest_of(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Where the largest of values [..., C] stands among those in the mask, [...] int32.

    The first of equals. Whatever the values are, even -inf, one that isn't there never wins; 0
    where none is. NaN counts as -inf: an argmax would take it for the largest.
    """
    if jnp.issubdtype(values.dtype, jnp.floating):
        values, lowest = jnp.where(jnp.isnan(values), -jnp.inf, values), -jnp.inf
    else:
        lowest = jnp.iinfo(values.dtype).min
    place = jnp.argmax(jnp.where(mask, values, lowest), axis=-1)
    there = jnp.take_along_axis(mask, place[..., None], axis=-1)[..., 0]
    return jnp.where(there, place, jnp.argmax(mask, axis=-1)).astype(jnp.int32)


def fit(
    norms: jax.Array,
    mask: jax.Array,
    labels: jax.Array,
    q: float = 0.85,
    *,
    rule: Rule = "code",
    voters: Voters = "both",
) -> Heads:
    """Chooses the voters with labeled questions, [n, C, HL], [n, C], [n].

    Args:
        norms: [n, C, HL], finite where `mask` is set.
        mask: [n, C] bool: which candidates there are.
        labels: [n] int: the right candidates.
        q: see `select_heads`.
        rule: see `select_heads`.
        voters: see `select_heads`.

    Returns:
        Which heads vote, and in which direction.
    """
    return select_heads(correct_counts(norms, mask, labels), q, rule=rule, voters=voters)


def predict(norms: jax.Array, mask: jax.Array, heads: Heads) -> jax.Array:
    """The elected candidates of questions [n, C, HL], [n, C]: [n] int32.

    Args:
        norms: [n, C, HL], finite where `mask` is set.
        mask: [n, C] bool: which candidates there are.
        heads: the voters.

    Returns:
        [n] int32; -1 without voters.
    """
    return jax.vmap(vote, (0, 0, None))(norms, mask, heads)[1]


def heads_from_indices(largest: Sequence[int], smallest: Sequence[int], total: int) -> Heads:
    """Voters from two lists of head indices.

    Args:
        largest: heads that vote for the largest norm.
        smallest: heads that vote for the smallest norm.
        total: HL, the number of heads of the model.

    Returns:
        The voters.

    Raises:
        ValueError: an index that isn't in [0, total), or one in both lists.
    """
    masks = []
    for name, indices in (("heads_max", largest), ("heads_min", smallest)):
        wrong = [index for index in indices if not 0 <= index < total]
        if wrong:
            raise ValueError(f"{name}: expected indices in [0, {total}), got {wrong[0]}")
        masks.append(np.isin(np.arange(total), np.asarray(indices, int)))
    twice = np.flatnonzero(masks[0] & masks[1])
    if twice.size:
        raise ValueError(f"heads_max, heads_min: head {twice[0]} is in both lists")
    return Heads(
        jnp.asarray(masks[0]), jnp.asarray(masks[1]), jnp.asarray(masks[0] | masks[1]).any()
    )


def heads_to_indices(heads: Heads) -> tuple[list[int], list[int]]:
    """The two ascending lists of head indices."""
    return np.flatnonzero(heads.max_mask).tolist(), np.flatnonzero(heads.min_mask).tolist()


def heads_to_json(heads: Heads, layers: int) -> str:
    """Voters as JSON: two lists of indices, and the sizes that give them a meaning.

    Args:
        heads: the voters.
        layers: the model's number of layers.

    Returns:
        JSON.
    """
    largest, smallest = heads_to_indices(heads)
    sizes = {"num_layers": layers, "num_heads": heads.max_mask.shape[-1] // layers}
    return json.dumps(sizes | {"heads_max": largest, "heads_min": smallest})


def heads_from_json(text: str, total: int | None = None, layers: int | None = None) -> Heads:
    """The inverse of `heads_to_json`; `total` is the model's number of heads, if it is known.

    Args:
        text: JSON.
        total: the model's number of heads; None: unknown.
        layers: the model's number of layers; None: unknown. Heads are numbered layer by layer, so
            that 2 layers of 8 have other ones than 4 of 4.

    Returns:
        The voters.

    Raises:
        UserError: not such JSON, or heads of a model of another size.
    """
    try:
        content: dict[str, Any] = json.loads(text)
        deep, wide = _whole(content, "num_layers"), _whole(content, "num_heads")
        size = deep * wide
        heads = heads_from_indices(
            _wholes(content, "heads_max"), _wholes(content, "heads_min"), size
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"heads: not a list of voting heads ({error})") from error
    if layers is not None and deep != layers:
        raise UserError(f"heads: are those of a model with {deep} layers; this one has {layers}")
    if total is not None and size != total:
        raise UserError(f"heads: are those of a model with {size} heads; this one has {total}")
    return heads


def _whole(content: dict[str, Any], name: str) -> int:
    value = content[name]
    if type(value) is not int or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r:.80}")
    return value


def _wholes(content: dict[str, Any], name: str) -> list[int]:
    values = content[name]
    if not isinstance(values, list) or any(type(value) is not int for value in values):
        raise ValueError(f"{name}: expected a list of integers, got {values!r:.80}")
    return values
