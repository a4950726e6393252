"""LiRA: membership by the likelihood ratio of an example's confidence.

    score_i = log N(phi_i; mu_in, s_in^2) - log N(phi_i; mu_out, s_out^2),    phi = log p / (1 - p)

with means and variances of phi over shadow models trained with and without example i (Carlini et
al., "Membership inference attacks from first principles", 2022). Shadow models are those of
`influence.memorization.train_on_subsets` or `train_on_places`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmethods.numerics.precision import wide

LEAST_VARIANCE = 1e-12
"""That of shadow models which agree to rounding on an example, as saturated ones do."""


def lira(
    inside: jax.Array, outside: jax.Array, observed: jax.Array, fixed_variance: bool = False
) -> jax.Array:
    """Scores from shadow models in two groups.

    Args:
        inside: phi of models that were trained with the example, [S, N].
        outside: of models that were not, [S', N].
        observed: of the model under attack, [N].
        fixed_variance: one variance for all examples, better for few shadow models.

    Returns:
        [N], larger for members.
    """
    ones = lambda x: jnp.ones(x.shape, bool)  # noqa: E731
    both = jnp.concatenate([inside, outside])
    member = jnp.concatenate([ones(inside), ~ones(outside)])
    return lira_of_subsets(both, member, observed, fixed_variance)


def lira_of_subsets(
    confidences: jax.Array,
    subsets: jax.Array,
    observed: jax.Array,
    fixed_variance: bool = False,
) -> jax.Array:
    """Scores from models of random subsets.

    Args:
        confidences: phi of every shadow model on every example, [M, N].
        subsets: membership [M, N] bool.
        observed: phi of the model under attack, [N].
        fixed_variance: one variance for all examples, better for few shadow models.

    Returns:
        [N]; NaN for an example that is always or never a member.
    """

    def log_density(member: jax.Array) -> jax.Array:
        count = jnp.sum(member, axis=0)
        mean = jnp.sum(jnp.where(member, confidences, 0), axis=0) / count
        squares = jnp.where(member, (confidences - mean) ** 2, 0)
        variance = jnp.sum(squares, axis=0) / count
        if fixed_variance:
            variance = jnp.sum(squares) / jnp.sum(count)
        variance = jnp.maximum(variance, LEAST_VARIANCE)
        return -(jnp.log(variance) + (observed - mean) ** 2 / variance) / 2

    subsets = subsets.astype(bool)
    # The least variance is 0 in half precision.
    confidences, observed = wide(confidences), wide(observed)
    return log_density(subsets) - log_density(~subsets)
