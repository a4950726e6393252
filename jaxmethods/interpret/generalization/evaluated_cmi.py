"""Generalization from how much losses say about which examples were trained on.

With pairs (z_i0, z_i1) of which a fair coin S_i chooses the one to train on, and 0-1 losses
(l_i0, l_i1) of the trained model,

    |E gap| <= (1/n) sum_i sqrt(2 I(l_i0, l_i1; S_i))

(evaluated conditional mutual information: Steinke, Zakynthinou 2020; functional form: Harutyunyan
et al. 2021; samplewise: Hellström, Durisi 2022). Information is estimated from M trainings, counted
over the four outcomes; the plug-in estimate is biased upwards by about 3 / (2 M) nats.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.numerics.compiled import compiled


class EvaluatedCmi(NamedTuple):
    """A bound and what it bounds."""

    bound: jax.Array
    """[], on the expected gap of the 0-1 loss."""
    gap: jax.Array
    """[], mean test minus mean training error over the M trainings."""
    information: jax.Array
    """[n], nats, at most log 2."""


@compiled()
def evaluated_cmi(wrong: jax.Array, chosen: jax.Array) -> EvaluatedCmi:
    """The bound from M trainings.

    Args:
        wrong: 0-1 losses on both examples of each pair, [M, n, 2].
        chosen: S, which example of a pair was trained on, [M, n] of 0 or 1.

    Returns:
        The bound, the measured gap and the information of each pair.

    Raises:
        ValueError: shapes that don't fit, or fewer than two trainings.
    """
    if wrong.shape[:2] != chosen.shape or wrong.shape[2:] != (2,) or len(wrong) < 2:
        raise ValueError(f"wrong: expected {chosen.shape} + (2,) of M > 1, got {wrong.shape}")
    wrong = wrong.astype(jnp.int32)
    outcome = jax.nn.one_hot(2 * wrong[..., 0] + wrong[..., 1], 4)  # [M, n, 4]
    coin = jax.nn.one_hot(chosen, 2)  # [M, n, 2]
    joint = jnp.einsum("mno,mnc->noc", outcome, coin) / len(wrong)

    def entropy(p: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        return -jnp.sum(jax.scipy.special.xlogy(p, p), axes)

    apart = entropy(joint.sum(2), (1,)) + entropy(joint.sum(1), (1,))
    information = jnp.maximum(apart - entropy(joint, (1, 2)), 0)
    trained = jnp.take_along_axis(wrong, chosen[..., None].astype(int), axis=2)
    tested = jnp.take_along_axis(wrong, 1 - chosen[..., None].astype(int), axis=2)
    return EvaluatedCmi(
        jnp.mean(jnp.sqrt(2 * information)), jnp.mean(tested) - jnp.mean(trained), information
    )
