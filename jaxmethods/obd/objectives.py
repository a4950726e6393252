r"""The two losses of OBD: cloning on the synthetic set, and how the clone is judged.

Inner loss, the mean over N pairs and A action dimensions, on sampled actions:

    l_BC(theta, D) = mean_nj ( a_theta(s_n; eps_n)_j - a_nj )^2

Outer loss on B states of the offline data, a* a sampled action of the near-expert policy:

    DBC          mean_nj ( a_theta(s_n) - a_off,n )_j^2
    PBC          mean_nj ( a_theta(s_n) - a*_n )_j^2
    Av-PBC       mean_nj w_n ( a_theta(s_n) - a*_n )_j^2,     w_n = beta_w q*(s_n, a*_n)
    PBC-scaled   the same with mean_n w_n for every w_n

The last one shows how much of Av-PBC's gain is the weighting and how much the larger step: where
the clipping of the outer gradient is inactive, a factor of the loss is a factor of its rate.
With state density weights r_n (see `density`) every w_n becomes r_n w_n.

Lei, Zhang and Tao, NeurIPS 2024, arXiv 2410.22728, section 4; beta_w and the squared error of
sampled actions (for densities pi(a|s)) are those of its code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxmethods.numerics.sampling import distinct_rows
from jaxmethods.obd.config import OBDConfig
from jaxmethods.obd.types import Source, SynSet
from jaxmethods.offline_rl.policies import policy_sample, q_value
from jaxmethods.offline_rl.types import teacher_states

LEAST_MEAN = 0.01
"""Weights of both signs may cancel: they are multiplied by 100 at most for it."""
Sample: TypeAlias = Callable[[Any, jax.Array, jax.Array], jax.Array]
"""(params, states, noise) -> sampled actions; `Policy.sample`."""


class OuterBatch(NamedTuple):
    """What the outer loss compares a student with; nothing in it is differentiated."""

    states: jax.Array
    """[B, S] normalized."""
    targets: jax.Array
    """[B, A] actions to imitate."""
    weights: jax.Array
    """[B]"""
    noise: jax.Array
    """[B, A] of the student's actions."""


def bc_loss(
    params: Any,
    syn: SynSet,
    noise: jax.Array,
    sample: Sample = policy_sample,
    size: jax.Array | int | None = None,
) -> jax.Array:
    """l_BC, [].

    Args:
        params: theta.
        syn: D, N pairs.
        noise: [N, A].
        sample: (params, states, noise) -> sampled actions; static.
        size: use only this many of the first of the N pairs, all of them from N on; may be traced.

    Returns:
        [], in the dtype of the set.
    """
    error = _squared_error(sample(params, syn.states, noise), syn.actions)
    if size is None:
        return jnp.mean(error)
    used = jnp.arange(len(error)) < size
    size = jnp.minimum(size, len(error))
    return jnp.sum(jnp.where(used[:, None], error, 0.0)) / (size * error.shape[-1])


def outer_loss(params: Any, batch: OuterBatch, sample: Sample = policy_sample) -> jax.Array:
    """The weighted squared error of the student's sampled actions, []."""
    error = _squared_error(sample(params, batch.states, batch.noise), batch.targets)
    return jnp.mean(batch.weights[:, None] * error)


def make_outer_batch(
    key: jax.Array, source: Source, config: OBDConfig, beta_w: jax.Array | float
) -> OuterBatch:
    """Draws `config.batch` rows, the teacher's actions on them, weights and the student's noise.

    Args:
        key: [] typed random key.
        source: offline data and teacher.
        config: objective and batch size; static.
        beta_w: what a weight is multiplied by; may be traced.

    Returns:
        B states, their targets and weights, and the noise [B, A] of the student's actions.

    Raises:
        ValueError: an objective other than `dbc` without a teacher; fewer rows than `batch`.
    """
    row_key, teacher_key, noise_key = jax.random.split(key, 3)
    data = source.data
    rows = distinct_rows(row_key, len(data.states), config.batch)
    states, own = data.states[rows], data.actions[rows]
    noise = jax.random.normal(noise_key, own.shape, own.dtype)
    density = None if data.density_weights is None else data.density_weights[rows]
    if config.objective == "dbc":
        weights = jnp.ones(len(states), states.dtype) if density is None else density
        return OuterBatch(states, own, weights, noise)
    if source.teacher is None:
        raise ValueError(f"objective: {config.objective!r} needs a teacher, got none")
    seen = teacher_states(source.teacher, source.norm, states)
    teacher_noise = jax.random.normal(teacher_key, own.shape, own.dtype)
    targets = policy_sample(source.teacher.policy, seen, teacher_noise)
    weights = outer_weights(q_value(source.teacher.q1, seen, targets), config, beta_w)
    weights = weights if density is None else weights * density
    return OuterBatch(states, targets, weights, noise)


def outer_weights(q: jax.Array, config: OBDConfig, beta_w: jax.Array | float) -> jax.Array:
    """w_n of the values q [B], [B]: first clipped, then normalized, as `config` says.

    What weights are divided by is their mean, without its sign, which would turn their order
    around, and at least `LEAST_MEAN` of their mean magnitude.
    """
    if config.objective in ("dbc", "pbc"):
        return jnp.ones_like(q)
    weights = beta_w * q
    if config.weight_clip_min is not None:
        weights = jnp.maximum(weights, config.weight_clip_min)
    if config.weight_norm == "mean":
        mean = jnp.maximum(jnp.abs(weights.mean()), LEAST_MEAN * jnp.abs(weights).mean())
        weights = weights / jnp.where(mean > 0, mean, 1.0)
    if config.objective == "pbc_scaled":
        return jnp.full_like(weights, weights.mean())
    return weights


def _squared_error(actions: jax.Array, targets: jax.Array) -> jax.Array:
    """In float32 at least, whatever the network computes in."""
    error = actions - targets
    return jnp.square(error.astype(jnp.promote_types(error.dtype, jnp.float32)))
