"""From flat episodes to what a planner trains on: normalized rows, returns, windows, draws.

    R_t = sum_{t' >= t} gamma^{t' - t} r_{t'} within the episode, then min-max over the task

Hu et al., VQ-CD, arXiv 2410.15698, section 3; the predecessor's code sums without discount.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.numerics.precision import wide

Normalizer = Literal["gaussian", "limits", "none"]
LEAST_STD = 1e-8
"""A dimension that varies less, or by no more than float32's rounding, is divided by 1."""
ROUNDS = 4
"""Rounds of the Feistel network that permutes windows."""


class Statistics(NamedTuple):
    """How a task's states, or actions, are normalized: (x - shift) / scale."""

    shift: jax.Array | np.ndarray
    """[D] float32"""
    scale: jax.Array | np.ndarray
    """[D] float32, above 0."""


def statistics(x: np.ndarray, normalizer: Normalizer = "gaussian") -> Statistics:
    """Finds how rows are normalized; on the host, in float64.

    Args:
        x: [N, D].
        normalizer: to mean 0 and population deviation 1, to [-1, 1], or not at all.

    Returns:
        Shift and scale [D] float32; a column that does not vary has scale 1.

    Raises:
        ValueError: x is not a matrix, has no rows, or holds NaN or infinity.
    """
    if x.ndim != 2:
        raise ValueError(f"x: expected [N, D], got {list(x.shape)}")
    if not len(x) or not np.isfinite(x).all():
        raise ValueError(
            f"x: expected finite rows, got {'some that are not' if len(x) else 'none'}"
        )
    if normalizer == "none":
        return Statistics(np.zeros(x.shape[1], np.float32), np.ones(x.shape[1], np.float32))
    rows = np.asarray(x, np.float64)
    if normalizer == "gaussian":
        shift, scale = rows.mean(0), rows.std(0)
    else:
        low, high = rows.min(0), rows.max(0)
        shift, scale = (high + low) / 2, (high - low) / 2
    rounding = np.finfo(np.float32).eps * np.abs(shift)
    scale = np.where((scale < LEAST_STD) | (scale <= rounding), 1.0, scale)
    return Statistics(shift.astype(np.float32), scale.astype(np.float32))


def normalize(norm: Statistics, x: jax.Array) -> jax.Array:
    """(x - shift) / scale of [..., D]."""
    return (x - norm.shift) / norm.scale


def unnormalize(norm: Statistics, x: jax.Array) -> jax.Array:
    """x scale + shift of [..., D]."""
    return x * norm.scale + norm.shift


def returns_to_go(rewards: jax.Array, last: jax.Array, discount: float = 0.99) -> jax.Array:
    """Discounted sums of rewards to the end of each episode, one reverse scan.

    Args:
        rewards: [N] of episodes one after another.
        last: [N] bool, true at every episode's last row.
        discount: gamma.

    Returns:
        [N] float32, or the type of `rewards` where that is wider.
    """
    rewards = wide(rewards)  # in a type of whole numbers the discount would be 0
    carried = jnp.where(last, 0.0, discount).astype(rewards.dtype)

    def join(later: tuple, earlier: tuple) -> tuple:
        # Two stretches of rows, each a map G -> reward + carried G, one after the other.
        return later[0] * earlier[0], earlier[1] + earlier[0] * later[1]

    return jax.lax.associative_scan(join, (carried, rewards), reverse=True)[1]


def min_max(x: jax.Array) -> jax.Array:
    """x [N] scaled to [0, 1]; 0.5 throughout where all are equal."""
    low, high = x.min(), x.max()
    width = jnp.where(high > low, high - low, 1.0)
    return jnp.where(high > low, (x - low) / width, 0.5)


def window_starts(ends: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """All windows that stay within an episode; on the host, since their number depends on data.

    Args:
        ends: [E] exclusive end row of every episode, in order.
        horizon: T rows a window.

    Returns:
        (first row [M], episode [M]), int32, in order. Episodes shorter than T have none.
    """
    ends = np.asarray(ends, np.int64)
    begins = np.append(0, ends[:-1])
    counts = np.maximum(ends - begins - horizon + 1, 0)
    episode = np.repeat(np.arange(len(ends)), counts)
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return (begins[episode] + place).astype(np.int32), episode.astype(np.int32)


def draw_windows(
    key: jax.Array, number: int, count: jax.Array, step: jax.Array, permute: bool
) -> jax.Array:
    """Which windows a step trains on.

    Args:
        key: [] typed key of the task; the same for all its steps.
        number: how many; static.
        count: [] int32 windows there are.
        step: [] int32.
        permute: each window once an epoch, in a fresh order; else with replacement. Static.

    Returns:
        [number] int32 below `count`.
    """
    if not permute:
        return jax.random.randint(jax.random.fold_in(key, step), (number,), 0, count)
    place = step * number + jnp.arange(number)
    return permuted(key, place, count)


def permuted(key: jax.Array, place: jax.Array, count: jax.Array) -> jax.Array:
    """The element at places [n] of an endless walk through 0..count-1, each once an epoch.

    A Feistel network permutes the numbers below a power of four; those from `count` on are
    permuted again until they fall below it. Nothing is stored, whatever `count` is.

    Args:
        key: [] typed key.
        place: [n] int32; the epoch is `place // count`.
        count: [] int32 elements, at least 1.

    Returns:
        [n] int32.
    """
    epoch, start = (place // count).astype(jnp.uint32), (place % count).astype(jnp.uint32)
    bits = jnp.maximum(1, (33 - jax.lax.clz(jnp.maximum(count - 1, 1).astype(jnp.uint32))) // 2)
    bits = bits.astype(jnp.uint32)
    half = (jnp.uint32(1) << bits) - 1
    seeds = jax.random.bits(key, (ROUNDS,))

    def encipher(value: jax.Array) -> jax.Array:
        left, right = value >> bits, value & half
        for seed in seeds:
            mixed = _mixed(right ^ _mixed(seed + epoch * jnp.uint32(0x9E3779B9)))
            left, right = right, left ^ (mixed & half)
        return (left << bits) | right

    limit = count.astype(jnp.uint32)

    def again(value: jax.Array) -> jax.Array:
        return jnp.where(value < limit, value, encipher(value))

    found = jax.lax.while_loop(lambda value: (value >= limit).any(), again, encipher(start))
    return found.astype(jnp.int32)


def _mixed(x: jax.Array) -> jax.Array:
    """Spreads every bit of a 32-bit number over all (the finalizer of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
