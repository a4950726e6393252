"""How far a student's next-token distribution q is from a teacher's p.

Every function takes logits [..., V] and gives nats [...], one number a token; masks and means are
separate (`masked_mean`). With p = softmax(teacher / tau) and q = softmax(student / tau):

    forward_kl       KL(p || q) = sum p (log p - log q)
    reverse_kl       KL(q || p)
    jsd              beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q
    total_variation  1/2 sum |p - q|
    skew_forward_kl  KL(p || skew p + (1 - skew) q)          (DistiLLM, arXiv 2402.03898)
    skew_reverse_kl  KL(q || (1 - skew) p + skew q)
    adaptive_kl      w KL(p || q) + (1 - w) KL(q || p), w the share of |p - q| on the teacher's
                     most likely tokens                      (AKL, arXiv 2404.02657)
    decoupled        alpha TCKD + beta NCKD: target against the rest, and the rest without the
                     target                                  (DKD, arXiv 2203.08679)
    atkd             both, weighted by how sure the teacher is (ATKD, arXiv 2402.11890)
    osd_mix          0.9 KL(p || q) + 0.1 KL(q || p)         (what OSD and ATKD call "jsd")

Computed in float32, or float64 where the logits are. A logit of -inf, such as that of a padded
vocabulary, is a token of probability 0 and adds 0; where one model excludes what the other doesn't,
KL is infinite, as it should be, and its gradient finite. `over_chunks` computes what needs logits a
few tokens at a time, so that no [B, T, V] is ever held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

Normalizer: TypeAlias = Literal["tokens", "sequence"]
OSD_FORWARD = 0.9


def forward_kl(student: jax.Array, teacher: jax.Array, temperature: float = 1.0) -> jax.Array:
    """KL(p || q), [...]. Args: logits [..., V] of both."""
    log_q, log_p = _log_probs(student, temperature), _log_probs(teacher, temperature)
    return _kl(log_p, log_q)


def reverse_kl(student: jax.Array, teacher: jax.Array, temperature: float = 1.0) -> jax.Array:
    """KL(q || p), [...]. Args: logits [..., V] of both."""
    log_q, log_p = _log_probs(student, temperature), _log_probs(teacher, temperature)
    return _kl(log_q, log_p)


def jsd(
    student: jax.Array, teacher: jax.Array, beta: float = 0.5, temperature: float = 1.0
) -> jax.Array:
    """The generalized Jensen-Shannon divergence.

    Args:
        student, teacher: logits [..., V].
        beta: weight of the teacher in the mixture, static; 0 is the forward and 1 the reverse KL,
            by definition: the formula itself tends to 0 at both ends.
        temperature: tau, which divides both models' logits.

    Returns:
        [...] nats, at most log 2 for beta = 1/2.

    Raises:
        ValueError: beta outside [0, 1].
    """
    _check("beta", beta)
    if beta in (0, 1):
        return (reverse_kl if beta else forward_kl)(student, teacher, temperature)
    log_q, log_p = _log_probs(student, temperature), _log_probs(teacher, temperature)
    log_m = _mixture(log_p, log_q, beta)
    return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)


def total_variation(student: jax.Array, teacher: jax.Array, temperature: float = 1.0) -> jax.Array:
    """Half the sum of |p - q|, [...] in [0, 1]. Args: logits [..., V] of both."""
    log_q, log_p = _log_probs(student, temperature), _log_probs(teacher, temperature)
    return 0.5 * jnp.sum(jnp.abs(jnp.exp(log_p) - jnp.exp(log_q)), -1)


def skew_forward_kl(
    student: jax.Array, teacher: jax.Array, skew: float = 0.1, temperature: float = 1.0
) -> jax.Array:
    """KL(p || skew p + (1 - skew) q).

    Args:
        student, teacher: logits [..., V].
        skew: static, in [0, 1]; 0 is the forward KL, 1 gives 0.
        temperature: tau, which divides both models' logits.

    Returns:
        [...] nats, at most -log(skew).

    Raises:
        ValueError: skew outside [0, 1].
    """
    _check("skew", skew)
    log_q, log_p = _log_probs(student, temperature), _log_probs(teacher, temperature)
    return _kl(log_p, _mixture(log_p, log_q, skew))


def skew_reverse_kl(
    student: jax.Array, teacher: jax.Array, skew: float = 0.1, temperature: float = 1.0
) -> jax.Array:
    """KL(q || (1 - skew) p + skew q).

    Args:
        student, teacher: logits [..., V].
        skew: static, in [0, 1]; 0 is the reverse KL, 1 gives 0.
        temperature: tau, which divides both models' logits.

    Returns:
        [...] nats, at most -log(skew).

    Raises:
        ValueError: skew outside [0, 1].
    """
    _check("skew", skew)
    log_q, log_p = _log_probs(student, temperature), _log_probs(teacher, temperature)
    return _kl(log_q, _mixture(log_q, log_p, skew))


def adaptive_kl(
    student: jax.Array, teacher: jax.Array, head_mass: float = 0.5, temperature: float = 1.0
) -> jax.Array:
    """Forward and reverse KL, weighted by where the distributions differ.

    Args:
        student, teacher: logits [..., V].
        head_mass: mu; the head is the most likely token and those up to which the teacher's
            cumulative probability is at most this.
        temperature: tau, which divides both models' logits.

    Returns:
        [...] nats. No gradient flows through the weights.
    """
    log_q, log_p = _log_probs(student, temperature), _log_probs(teacher, temperature)
    weight = head_weight(log_p, log_q, head_mass)
    return weight * _kl(log_p, log_q) + (1 - weight) * _kl(log_q, log_p)


def head_weight(log_p: jax.Array, log_q: jax.Array, head_mass: float) -> jax.Array:
    """The share of sum |p - q| that lies on the teacher's head, [...]; 1/2 where p = q."""
    p, q = lax.stop_gradient((jnp.exp(log_p), jnp.exp(log_q)))
    order = jnp.argsort(-p, axis=-1, stable=True)
    ordered = jnp.take_along_axis(p, order, -1)
    head = (jnp.cumsum(ordered, -1) <= head_mass).at[..., 0].set(True)
    apart = jnp.take_along_axis(jnp.abs(p - q), order, -1)
    all_of_it = jnp.sum(apart, -1)
    there = jnp.sum(jnp.where(head, apart, 0), -1)
    return jnp.where(all_of_it > 0, there / jnp.where(all_of_it > 0, all_of_it, 1), 0.5)


class Decoupled(NamedTuple):
    """The parts of KL(p || q) = target + (1 - p_g) other, [...] each."""

    target: jax.Array
    """TCKD: KL between (p_g, 1 - p_g) and (q_g, 1 - q_g), g the gold token."""
    other: jax.Array
    """NCKD: KL between p and q without the gold token, normalized anew."""
    uncertainty: jax.Array
    """1 - p_g; no gradient."""


def decouple(
    student: jax.Array, teacher: jax.Array, targets: jax.Array, temperature: float = 1.0
) -> Decoupled:
    """The decoupled parts of the forward KL.

    Args:
        student, teacher: logits [..., V].
        targets: [...] int, the gold tokens.
        temperature: tau, which divides both models' logits.

    Returns:
        TCKD, NCKD and the teacher's probability of the rest, [...] each; no gradient flows through
        the last. NaN where a target is negative, which is no token: `masked_mean` leaves it out.
    """
    gold = jnp.arange(student.shape[-1]) == targets[..., None]
    there = targets >= 0
    sides = []
    for logits in (teacher, student):
        log_probs = _log_probs(logits, temperature)
        rest = jnp.where(gold, -jnp.inf, log_probs)
        log_gold = _of_targets(log_probs, targets)
        none = jnp.all(rest == -jnp.inf, -1, keepdims=True)  # of no rest there is no share
        shares = jax.nn.log_softmax(jnp.where(none, 0, rest), -1)
        shares = jnp.where(none, -jnp.inf, shares)
        sides.append((log_gold, jax.nn.logsumexp(rest, -1), shares))
    (p_gold, p_rest, p_other), (q_gold, q_rest, q_other) = sides
    two = _kl(jnp.stack([p_gold, p_rest], -1), jnp.stack([q_gold, q_rest], -1))
    parts = Decoupled(two, _kl(p_other, q_other), lax.stop_gradient(jnp.exp(p_rest)))
    return Decoupled(*(jnp.where(there, part, jnp.nan) for part in parts))


def decoupled(
    student: jax.Array,
    teacher: jax.Array,
    targets: jax.Array,
    alpha: float,
    beta: float,
    temperature: float = 1.0,
) -> jax.Array:
    """alpha TCKD + beta NCKD.

    Args:
        student, teacher: logits [..., V].
        targets: [...] int, the gold tokens.
        alpha: weight of target against the rest.
        beta: weight of the rest without the target.
        temperature: tau, which divides both models' logits.

    Returns:
        [...] nats.
    """
    parts = decouple(student, teacher, targets, temperature)
    return alpha * parts.target + beta * parts.other


def atkd_loss(parts: Decoupled, mask: jax.Array, alpha: float = 0.2) -> jax.Array:
    """The loss of ATKD from the parts of all tokens.

    Tokens whose uncertainty is below the (lower) median of the counted ones are easy: they are
    taught by NCKD alone, others by both parts; alpha weighs the easy ones. An empty set counts 0.

    Args:
        parts: [...] each.
        mask: [...], which tokens count.

    Returns:
        a scalar.
    """
    easy = easy_tokens(parts.uncertainty, mask)
    hard = mask.astype(bool) & ~easy
    taught_hard = masked_mean(parts.target, hard) + masked_mean(parts.other, hard)
    return alpha * masked_mean(parts.other, easy) + (1 - alpha) * taught_hard


def atkd(
    student: jax.Array,
    teacher: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    alpha: float = 0.2,
    temperature: float = 1.0,
) -> jax.Array:
    """Adaptive teaching by token: see `atkd_loss`.

    Args:
        student, teacher: logits [..., V].
        targets: [...] int, the gold tokens.
        mask: [...], which tokens count.
        alpha: see `atkd_loss`.
        temperature: tau, which divides both models' logits.

    Returns:
        a scalar, the loss of the whole batch.
    """
    return atkd_loss(decouple(student, teacher, targets, temperature), mask, alpha)


def easy_tokens(uncertainty: jax.Array, mask: jax.Array) -> jax.Array:
    """[...] bool: counted tokens below the lower median of the counted ones' uncertainty."""
    counted = mask.astype(bool)
    return counted & (uncertainty < lower_median(uncertainty, counted))


def lower_median(values: jax.Array, mask: jax.Array) -> jax.Array:
    """The lower of the middle values of those that count; -inf where none does."""
    ordered = jnp.sort(jnp.where(mask, values, jnp.inf), axis=None)
    count = jnp.sum(mask)
    return jnp.where(count > 0, ordered[jnp.maximum(count - 1, 0) // 2], -jnp.inf)


def osd_mix(student: jax.Array, teacher: jax.Array, temperature: float = 1.0) -> jax.Array:
    """0.9 KL(p || q) + 0.1 KL(q || p), [...]. Args: logits [..., V] of both."""
    log_q, log_p = _log_probs(student, temperature), _log_probs(teacher, temperature)
    return OSD_FORWARD * _kl(log_p, log_q) + (1 - OSD_FORWARD) * _kl(log_q, log_p)


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-log q(target), [...]; NaN of a negative target, such as -100, which is no token.

    Args: logits [..., V], targets [...] int.
    """
    return jnp.where(targets >= 0, -_of_targets(_log_probs(logits, 1.0), targets), jnp.nan)


def entropy(logits: jax.Array, temperature: float = 1.0) -> jax.Array:
    """The entropy of softmax(logits / temperature), [...] nats."""
    log_probs = _log_probs(logits, temperature)
    return -_expectation(log_probs, log_probs)


def masked_mean(
    values: jax.Array,
    mask: jax.Array,
    normalizer: Normalizer = "tokens",
    total: jax.Array | None = None,
) -> jax.Array:
    """The mean of what counts.

    Args:
        values: [B, ...].
        mask: the same shape; what doesn't count may be anything, NaN as well.
        normalizer: "tokens": the sum over all that counts, divided by how many; "sequence": the
            mean of each row, then over the rows that count something.
        total: what the sum is divided by, tokens or rows; where a batch comes in parts, that of the
            whole batch, so that the parts' means add up. Default: this batch's own.

    Returns:
        a scalar; 0 where nothing counts.
    """
    counted = mask.astype(bool)
    # Sums of float16 end at 65504.
    values = jnp.where(counted, values, 0).astype(jnp.promote_types(values.dtype, jnp.float32))
    if normalizer == "sequence":
        axes = tuple(range(1, values.ndim))
        each = jnp.sum(counted, axes)
        values = jnp.sum(values, axes) / jnp.maximum(each, 1)
        counted = each > 0
    total = jnp.sum(counted) if total is None else total
    return jnp.sum(values) / jnp.maximum(total, 1)


def over_chunks(function: Callable[[Any], Any], inputs: Any, chunk: int) -> Any:
    """`function` of N tokens, `chunk` of them at a time, recomputed in the backward pass.

    Logits of a chunk are all that is held at any time: `function` applies the heads.

    Args:
        function: leaves [C, ...] -> leaves [C, ...]; may close over parameters.
        inputs: leaves [N, ...].
        chunk: the largest C, static; chunks are as equal as they can be.

    Returns:
        what `function` gives for all tokens, leaves [N, ...]: the same for every chunk size.
    """
    number = jax.tree.leaves(inputs)[0].shape[0]
    size = max(1, min(chunk, number))
    chunks = -(-number // size)
    if chunks <= 1:
        return jax.checkpoint(function)(inputs)
    size = -(-number // chunks)  # 5 of 6 places at a time would be 10 places: 3 and 3 are 6

    def split(leaf: jax.Array) -> jax.Array:
        # The last chunk is filled up with tokens that are there: keys have no zero.
        full = jnp.concatenate([leaf, leaf[: chunks * size - number]])
        return full.reshape(chunks, size, *leaf.shape[1:])  # [K, C, ...]

    found = lax.map(jax.checkpoint(function), jax.tree.map(split, inputs))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:number], found)


def over_rows(function: Callable[[Any], Any], inputs: Any, chunk: int) -> Any:
    """`over_chunks` of B rows of R tokens, a few places of all rows at a time.

    Every chunk has tokens of every row, so that rows that are split over devices stay where they
    are: chunks of flattened rows would be gathered, and computed on every device.

    Args:
        function: leaves [C, ...] -> leaves [C, ...]; may close over parameters.
        inputs: leaves [B, R, ...].
        chunk: tokens at a time, static; at least one of every row.

    Returns:
        what `function` gives for all tokens, leaves [B, R, ...].
    """
    rows = jax.tree.leaves(inputs)[0].shape[0]
    places = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), inputs)  # [R, B, ...]
    found = over_chunks(jax.vmap(function, 1, 1), places, chunk // rows)
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), found)  # [B, R, ...]


def cut(logits: jax.Array, vocabulary: int) -> jax.Array:
    """Logits [..., V] of the first `vocabulary` tokens; `vocabularies` says which may be cut."""
    return logits[..., :vocabulary]


def _log_probs(logits: jax.Array, temperature: float) -> jax.Array:
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jax.nn.log_softmax(logits / temperature, axis=-1)


def _of_targets(log_probs: jax.Array, targets: jax.Array) -> jax.Array:
    """Those of the targets, [...]; of a negative one, which would count from the end, any."""
    return jnp.take_along_axis(log_probs, jnp.maximum(targets, 0)[..., None], -1)[..., 0]


def _expectation(log_p: jax.Array, values: jax.Array) -> jax.Array:
    """Sum of p values where p isn't 0: elsewhere values may be infinite. NaN stays NaN."""
    p = jnp.exp(log_p)
    there = ~(p <= 0)
    # A value that is infinite gives p no slope, which would be infinite too.
    p = jnp.where(jnp.isinf(values), lax.stop_gradient(p), p)
    return jnp.sum(jnp.where(there, p, 0) * jnp.where(there, values, 0), -1)


def _kl(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """KL(p || q), [...]; the sum's rounding doesn't make it negative by more than an eps."""
    there = log_p != -jnp.inf  # true of NaN: a model that diverged is not its teacher's equal
    difference = jnp.where(there, log_p, 0) - jnp.where(there, log_q, 0)
    return _expectation(log_p, difference)


def _mixture(log_p: jax.Array, log_q: jax.Array, weight: float) -> jax.Array:
    """log(weight p + (1 - weight) q)."""
    if weight in (0, 1):
        return log_p if weight else log_q
    # Where both are 0, the derivative of logaddexp is 0 / 0.
    there = (log_p != -jnp.inf) | (log_q != -jnp.inf)
    mixed = jnp.logaddexp(
        jnp.where(there, log_p, 0) + jnp.log(weight),
        jnp.where(there, log_q, 0) + jnp.log1p(-weight),
    )
    return jnp.where(there, mixed, -jnp.inf)


def _check(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a number in [0, 1], got {value}")
