"""Membership inference from one score an example, such as its negative loss.

    AUC          P[score of a member > score of another], ties half
    advantage    max over thresholds of TPR - FPR                         (Yeom et al. 2018)
    TPR at FPR   the largest TPR at a threshold whose FPR is at most that (Carlini et al. 2022)

An FPR below one over the number of non-members can't be measured: it would be read off a single
example, so the rate is NaN, unless it is asked for nevertheless.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmethods.interpret.problem import Estimate
from jaxmethods.numerics.precision import wide


def auc(scores: jax.Array, member: jax.Array) -> Estimate:
    """Area under the ROC curve.

    Args:
        scores: [N], larger for members.
        member: [N], 0 or 1.

    Returns:
        [] with the standard error of Hanley and McNeil (1982); 0.5 is chance.
    """
    member = member.astype(bool)
    positive, negative = jnp.sum(member), jnp.sum(~member)
    ranks = jax.scipy.stats.rankdata(scores)
    positive, negative = positive.astype(ranks.dtype), negative.astype(ranks.dtype)
    total = jnp.sum(jnp.where(member, ranks, 0)) - positive * (positive + 1) / 2
    area = total / (positive * negative)
    one, two = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (positive - 1) * (one - area**2)
    variance = (variance + (negative - 1) * (two - area**2)) / (positive * negative)
    return Estimate(area, jnp.sqrt(jnp.maximum(variance, 0)), jnp.asarray(len(scores)))


def roc(scores: jax.Array, member: jax.Array) -> tuple[jax.Array, jax.Array]:
    """FPR and TPR [N] at every score as threshold, "member" for scores at least as large."""
    member, scores = member.astype(bool), wide(scores)  # minus a byte is a byte
    order = jnp.argsort(-scores)
    ordered, own = scores[order], member[order]
    # Equal scores are above a threshold together: each takes the counts of the last of them.
    last = jnp.searchsorted(-ordered, -ordered, side="right") - 1
    hits = jnp.cumsum(own)[last] / jnp.sum(member)
    alarms = jnp.cumsum(~own)[last] / jnp.sum(~member)
    return alarms, hits


def advantage(scores: jax.Array, member: jax.Array) -> jax.Array:
    """max TPR - FPR over thresholds, []; optimistic, since the threshold is chosen on the data."""
    alarms, hits = roc(scores, member)
    return jnp.maximum(jnp.max(hits - alarms), 0)


def tpr_at_fpr(
    scores: jax.Array, member: jax.Array, fpr: float, at_any_size: bool = False
) -> jax.Array:
    """The TPR at a small FPR.

    Args:
        scores: [N], larger for members.
        member: [N], 0 or 1.
        fpr: e.g. 1e-2.
        at_any_size: also with fewer non-members than 1 / fpr, where it is the TPR without a false
            alarm.

    Returns:
        []; NaN with too few non-members.
    """
    alarms, hits = roc(scores, member)
    rate = jnp.max(jnp.where(alarms <= fpr, hits, 0))
    enough = jnp.sum(member == 0) * fpr >= 1 - 1e-6  # 41 (1 / 41) is less than one
    return jnp.where(enough | at_any_size, rate, jnp.nan)
