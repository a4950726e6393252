r"""Tables of the diffusion process and of the samplers that take few of its steps.

    abar(u) = cos^2((u / K + 0.008) / 1.008 pi / 2),  beta_k = min(1 - abar(k + 1) / abar(k), 0.999)

Nichol and Dhariwal 2021 (cosine schedule), Song et al. 2021 (strided), Lu et al. 2022
(DPM-Solver++, arXiv 2211.01095); the strided tables are those of VQ-CD's predecessor.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple, TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array | np.ndarray


class Schedule(NamedTuple):
    """Tables of the diffusion process, each [K] float32."""

    betas: Array
    abar: Array
    """Share of the signal's variance that is left after step k."""
    abar_prev: Array
    """The same before step k; 1 at k = 0."""
    signal: Array
    """sqrt(abar)"""
    sigma: Array
    """sqrt(1 - abar)"""
    inverse_signal: Array
    """sqrt(1 / abar)"""
    inverse_snr: Array
    """sqrt(1 / abar - 1)"""
    posterior_variance: Array
    posterior_log_variance: Array
    """Entry 0 is log 1e-20."""
    mean_coef1: Array
    """Weight of x_0 in the mean of x_{k-1}."""
    mean_coef2: Array
    """Weight of x_k in it."""


class Strided(NamedTuple):
    """Tables of the sampler that takes every `stride`-th step, each [G]."""

    steps: Array
    """int32: 0, stride, 2 stride, ...: the start counts as the last of them, not as step K - 1; or
    stride - 1, 2 stride - 1, ..., K - 1."""
    abar: Array
    abar_prev: Array
    alpha: Array
    """sqrt(abar / abar_prev)"""
    variance: Array
    """Variance of the noise that is added; 0 at entry 0."""
    noise_coef: Array
    """What of the predicted noise is taken away."""


class Solver(NamedTuple):
    """Tables of DPM-Solver++(2M) over the grid of `Strided`, each [G]; entry 0 ends at the data."""

    steps: Array
    signal: Array
    """sqrt(abar)"""
    sigma: Array
    """sqrt(1 - abar)"""
    x_coef: Array
    """Weight of x in the next x."""
    data_coef: Array
    """Weight of the (extrapolated) prediction of the data."""
    extrapolation: Array
    """How far the prediction is extrapolated from the one before; 0 at the first step, at
    the one that ends at k = 0, and at the one that ends at the data."""


@cache
def _betas(steps: int, offset: float = 0.008) -> np.ndarray:
    place = np.arange(steps + 1, dtype=np.float64) / steps
    share = np.cos((place + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.clip(1 - share[1:] / share[:-1], 0, 0.999)


def _grid(steps: int, stride: int, grid: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(steps, abar, abar before) of the first or last step of every stride, float64."""
    places = np.arange(0 if grid == "first" else stride - 1, steps, stride)
    abar = np.cumprod(1 - _betas(steps))[places]
    return places.astype(np.int32), abar, np.append(1.0, abar[:-1])


def _float32(*tables: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(table.astype(np.float32) for table in tables)


@cache
def cosine_schedule(steps: int) -> Schedule:
    """The cosine schedule of K = `steps`, with betas clipped to 0.999."""
    (betas,) = _float32(_betas(steps))
    # In float32, as the published code computes them: 1 - abar has lost digits where abar is close
    # to 1, and at k = 0 exact tables would differ by 1e-4 of themselves.
    (abar,) = _float32(np.cumprod(1 - betas, dtype=np.float64))
    before = np.append(np.float32(1), abar[:-1])
    variance = betas * (1 - before) / (1 - abar)
    log_variance = np.log(np.maximum(variance, np.float32(1e-20)))
    mean_coef1 = betas * np.sqrt(before) / (1 - abar)
    mean_coef2 = (1 - before) * np.sqrt(1 - betas) / (1 - abar)
    roots = np.sqrt(abar), np.sqrt(1 - abar), np.sqrt(1 / abar), np.sqrt(1 / abar - 1)
    return Schedule(betas, abar, before, *roots, variance, log_variance, mean_coef1, mean_coef2)


@cache
def strided(steps: int, stride: int, eta: float = 1.0, grid: str = "first") -> Strided:
    """Makes the tables of every `stride`-th step.

    Args:
        steps: K.
        stride: a divisor of K.
        eta: share of the variance; 0 is deterministic.
        grid: which step of every stride, "first" or "last".

    Returns:
        Tables of K / stride steps.
    """
    places, abar, before = _grid(steps, stride, grid)
    variance = eta * (before - abar) * (1 - before) / ((1 - abar) * before)
    coefficient = np.sqrt(1 - abar) - np.sqrt((1 - before - variance) * abar / before)
    tables = _float32(abar, before, np.sqrt(abar / before), variance, coefficient)
    return Strided(places, *tables)


@cache
def solver(steps: int, stride: int, grid: str = "first") -> Solver:
    """DPM-Solver++(2M) in the half-logarithm l = log(signal / sigma) of the signal-to-noise ratio.

    x' = (sigma' / sigma) x + signal' (1 - e^{l - l'}) D', where D' is the prediction D of the data,
    extrapolated by half the ratio of this step's length to the last one's. The step to k = 0,
    several times as long as the one before it, isn't extrapolated (the paper's code:
    `lower_order_final`), since that would multiply what is wrong with D.
    """
    places, abar, before = _grid(steps, stride, grid)
    signal, sigma = np.sqrt(abar), np.sqrt(1 - abar)
    next_signal, next_sigma = np.sqrt(before), np.sqrt(1 - before)
    ratio = (next_sigma * signal) / (sigma * next_signal)  # e^{l - l'}; 0 at the end
    length = -np.log(np.maximum(ratio, 1e-300))
    extrapolation = np.append(0.5 * length[:-1] / length[1:], 0.0)
    extrapolation[: 2 if places[0] == 0 else 1] = 0.0
    data_coef = next_signal * (1 - ratio)
    return Solver(places, *_float32(signal, sigma, next_sigma / sigma, data_coef, extrapolation))
