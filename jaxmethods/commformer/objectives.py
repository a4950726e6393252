r"""What PPO minimizes, with a value head that predicts normalized returns.

    L = L_policy - c_H H + c_V L_value
    L_policy = -mean min(rho A, clip(rho, 1 +- eps) A),       rho = pi(a|o) / pi_old(a|o)
    L_value  =  mean max(huber(z - v), huber(z - v_old - clip(v - v_old, +- eps)))

where z is the return normalized by running statistics (value normalization of MAPPO, Yu et al.,
NeurIPS 2022) and A the generalized advantage estimate (Schulman et al., ICLR 2016) computed on
denormalized values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from optax.losses import huber_loss

from jaxmethods.commformer.config import PPOConfig
from jaxmethods.numerics.precision import two_product, two_sum

VALUE_NORM_DECAY = 0.99999
VALUE_NORM_EPSILON = 1e-5
"""Floor of the debiasing term."""
VARIANCE_FLOOR = 1e-2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ValueNormState:
    """Exponential moving moments of the returns, all zero at the start.

    A step of 1e-5 of the way is lost in a float32 number that is 300 times as large, so that each
    moment is the sum of two. Iterating yields the three moments.
    """

    mean: jax.Array
    """[] float32: biased moving mean."""
    mean_square: jax.Array
    """[] float32: biased moving mean of squares."""
    debias: jax.Array
    """[] float32: 1 - decay^(number of updates), what the moments are divided by."""
    rest: tuple[Any, Any, Any] = (np.float32(0), np.float32(0), np.float32(0))
    """What rounding left off of each, [] float32."""

    def __iter__(self) -> Iterator[jax.Array]:
        return iter((self.mean, self.mean_square, self.debias))

    def __len__(self) -> int:
        return 3


class PPOTargets(NamedTuple):
    """What the loss compares the new policy and value with; all of one shape, e.g. [B, N]."""

    old_log_prob: jax.Array
    """Log-probabilities of the actions when they were taken; [B, N, A] if continuous."""
    old_value: jax.Array
    """Values when the actions were taken, in normalized units."""
    advantage: jax.Array
    returns: jax.Array
    """In the units of the reward."""
    active: jax.Array | None = None
    """1 where an agent took part, 0 where it is left out of the means; None: all took part."""


def value_norm_init() -> ValueNormState:
    """Statistics of no returns at all: mean 0, variance at its floor."""
    zero = jnp.float32(0)
    return ValueNormState(zero, zero, zero, (zero, zero, zero))


def value_norm_update(state: ValueNormState, returns: jax.Array) -> ValueNormState:
    """Moves the statistics toward the mean and mean square of `returns` (any shape)."""
    returns = _wide(returns).astype(state.mean.dtype)
    mean = jnp.mean(returns)
    deviations = returns - mean
    mean, mean_rest = two_sum(mean, jnp.mean(deviations))
    square, square_rest = two_product(mean, mean)
    square_rest += 2.0 * mean * mean_rest + jnp.mean(jnp.square(deviations))
    targets = ((mean, mean_rest), (square, square_rest), (jnp.ones_like(mean), 0.0))

    def moved(old: jax.Array, rest: jax.Array, target: tuple) -> tuple[jax.Array, jax.Array]:
        new, new_rest = target
        step = (1.0 - VALUE_NORM_DECAY) * ((new - old) + (new_rest - rest))
        total, lost = two_sum(old, step)
        return two_sum(total, lost + rest)

    moments = [moved(*old) for old in zip(state, state.rest, targets, strict=True)]
    (mean, mean_square, debias), rest = zip(*moments, strict=True)
    return ValueNormState(mean, mean_square, debias, rest)


def value_norm_moments(state: ValueNormState) -> tuple[jax.Array, jax.Array]:
    """Debiased mean and variance, both [] float32; the variance is at least `VARIANCE_FLOOR`."""
    debias = jnp.maximum(state.debias, VALUE_NORM_EPSILON)
    mean_rest, square_rest, debias_rest = state.rest
    debias_rest = jnp.where(state.debias < VALUE_NORM_EPSILON, 0.0, debias_rest)
    # (E[x^2] z - E[x]^2) / z^2 of biased moments: a small difference of large products.
    first, first_rest = two_product(state.mean_square, debias)
    first_rest += state.mean_square * debias_rest + square_rest * debias
    second, second_rest = two_product(state.mean, state.mean)
    second_rest += 2.0 * state.mean * mean_rest
    spread = (first - second) + (first_rest - second_rest)
    variance = spread / debias / debias
    return state.mean / debias, jnp.maximum(variance, VARIANCE_FLOOR)


def value_norm_normalize(state: ValueNormState, returns: jax.Array) -> jax.Array:
    """(returns - mean) / standard deviation, in the shape of `returns`."""
    mean, variance = value_norm_moments(state)
    return (returns - mean) / jnp.sqrt(variance)


def value_norm_denormalize(state: ValueNormState, value: jax.Array) -> jax.Array:
    """Back to the units of the reward, in the shape of `value`."""
    mean, variance = value_norm_moments(state)
    return value * jnp.sqrt(variance) + mean


def gae(
    reward: jax.Array,
    value: jax.Array,
    bootstrap_value: jax.Array,
    discount_mask: jax.Array,
    discount: float,
    gae_lambda: float,
) -> tuple[jax.Array, jax.Array]:
    """Generalized advantage estimates and the returns they imply.

    delta_t = r_t + gamma m_t V_{t+1} - V_t,   A_t = delta_t + gamma lambda m_t A_{t+1},
    R_t = A_t + V_t.

    What lies behind an episode's end does not enter, whatever it is.

    Args:
        reward: r [T, ...] float32.
        value: V [T, ...] float32 of the state before each step, in the units of the reward.
        bootstrap_value: V_T [...], of the state after the last step.
        discount_mask: m [T, ...] (or broadcastable to it), 0 where step t ended the episode.
        discount: gamma.
        gae_lambda: lambda.

    Returns:
        Advantages and returns, both [T, ...].
    """
    reward, value, discount_mask = _wide(reward), _wide(value), _wide(discount_mask)
    discounts = jnp.broadcast_to(discount * discount_mask, reward.shape)
    next_value = jnp.concatenate([value[1:], bootstrap_value[None]])
    # 0 times NaN is NaN.
    deltas = reward + jnp.where(discounts != 0, discounts * next_value, 0) - value

    def one_step(
        advantage: jax.Array, step: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        delta, discount = step
        advantage = delta + jnp.where(discount != 0, gae_lambda * discount * advantage, 0)
        return advantage, advantage

    start = jnp.zeros(deltas.shape[1:], deltas.dtype)
    _, advantages = jax.lax.scan(one_step, start, (deltas, discounts), reverse=True)
    return advantages, advantages + value


def normalize_advantages(advantages: jax.Array, active: jax.Array | None = None) -> jax.Array:
    """(A - mean) / (std + 1e-5), with mean and population std over the active entries.

    Args:
        advantages: any shape.
        active: same shape, 1 for entries that count, or None for all.
    """
    advantages = _wide(advantages)
    deviations = advantages - _mean(advantages, active)
    # The mean's rounding would be all there is of equal advantages, and normalized to about 1.
    deviations -= _mean(deviations, active)
    std = jnp.sqrt(_mean(jnp.square(deviations), active))
    return deviations / (std + 1e-5)


def value_loss(
    value: jax.Array,
    old_value: jax.Array,
    target: jax.Array,
    clip: float,
    delta: float,
    active: jax.Array | None = None,
) -> jax.Array:
    """Mean of the worse of two Huber losses: of the value, and of its clipped change.

    Args:
        value: v, any shape.
        old_value: v_old when the action was taken, same shape and units.
        target: z, same shape and units.
        clip: eps, how far v may move from v_old in the clipped loss.
        delta: where the Huber loss turns linear.
        active: same shape, 1 for entries that count, or None for all.

    Returns:
        [] float32.
    """
    value, old_value, target = _wide(value), _wide(old_value), _wide(target)
    clipped = old_value + jnp.clip(value - old_value, -clip, clip)
    plain, near = (huber_loss(target - v, delta=delta) for v in (value, clipped))
    worse = jnp.maximum(plain, near)
    return _mean(worse, active)


def ppo_loss(
    log_prob: jax.Array,
    entropy: jax.Array,
    value: jax.Array,
    targets: PPOTargets,
    value_norm: ValueNormState,
    config: PPOConfig,
) -> tuple[jax.Array, tuple[ValueNormState, dict[str, jax.Array]]]:
    """The PPO loss; the returns update the value statistics before these normalize them.

    Args:
        log_prob: log pi(a|o) of the stored actions, any shape; differentiable, like the next two.
            With one more axis than `value`, [..., A], each dimension of a continuous action has a
            ratio of its own, and their clipped objectives are summed.
        entropy: of the policy, in the shape of `log_prob`.
        value: in normalized units.
        targets: what to compare with; `old_log_prob` in the shape of `log_prob`, the others in
            that of `value`.
        value_norm: statistics of the returns so far.
        config: coefficients, `clip` and `huber_delta`.

    Returns:
        The loss [] and (the updated statistics, metrics): policy_loss, value_loss, entropy and
        ratio, the mean probability ratio over all entries, active or not; all [] float32.
    """
    targets = _without_absent(targets)
    value_norm = value_norm_update(value_norm, targets.returns)
    target = value_norm_normalize(value_norm, targets.returns)
    active, eps = targets.active, config.clip
    log_prob, entropy = _wide(log_prob), _wide(entropy)
    ratio = jnp.exp(log_prob - targets.old_log_prob)
    dimensions = ratio.ndim > value.ndim
    advantage = targets.advantage[..., None] if dimensions else targets.advantage
    surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - eps, 1 + eps) * advantage)
    if dimensions:
        surrogate, entropy = surrogate.sum(-1), entropy.mean(-1)
    policy = -_mean(surrogate, active)
    error = value_loss(value, targets.old_value, target, eps, config.huber_delta, active)
    mean_entropy = _mean(entropy, active)
    loss = policy - config.entropy_coefficient * mean_entropy + config.value_coefficient * error
    metrics = {
        "policy_loss": policy,
        "value_loss": error,
        "entropy": mean_entropy,
        "ratio": jnp.mean(ratio),
    }
    return loss, (value_norm, metrics)


def _without_absent(targets: PPOTargets) -> PPOTargets:
    """0 for what is not finite of an agent that isn't there: 0 times NaN would be its gradient."""
    active = targets.active
    if active is None:
        return targets

    def present(values: jax.Array) -> jax.Array:
        there = active.reshape(active.shape + (1,) * (values.ndim - active.ndim)) > 0
        return jnp.where(there | jnp.isfinite(values), values, 0)

    kept: list[Any] = [present(values) for values in targets[:-1]]
    return PPOTargets(*kept, active=active)


def _mean(values: jax.Array, active: jax.Array | None) -> jax.Array:
    if active is None:
        return jnp.mean(values)
    # A minibatch without any active entry has a zero loss, not a NaN.
    active = active.astype(values.dtype)
    values = jnp.where(active > 0, values, 0)  # an agent that isn't there may be NaN
    return jnp.sum(values * active) / jnp.maximum(jnp.sum(active), 1.0)


def _wide(values: jax.Array) -> jax.Array:
    """In float32 at least: sums, squares and differences of half precision are none."""
    return jnp.asarray(values, jnp.promote_types(jnp.result_type(values), jnp.float32))
