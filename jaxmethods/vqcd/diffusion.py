r"""Diffusion of aligned state sequences: schedule, loss, and samplers that keep the present.

    x_k = sqrt(abar_k) x_0 + sqrt(1 - abar_k) eps,    L = mean |eps_theta(x_k, k, R) - eps|^2

Position 0 is the present state: it stays clean, is left out of the loss (but not of the mean), and
is put back after every sampling step. A plan is guided, eps = eps_0 + w (eps_R - eps_0), with both
predictions from one doubled batch, and clipped at every step: itself, or the data it predicts.

Hu et al., VQ-CD, arXiv 2410.15698, algorithms 1 and 2; Ho et al. 2020, Nichol and Dhariwal 2021
(cosine schedule), Song et al. 2021 (strided), Lu et al. 2022 (DPM-Solver++, arXiv 2211.01095).
`eps` functions take (x [B, T, C], k [B], keep [B, 1]) and return [B, T, C].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.vqcd.config import DiffusionConfig
from jaxmethods.vqcd.noise_schedule import (
    Array,
    Schedule,
    Strided,
    cosine_schedule,
    solver,
    strided,
)

Noise: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(x [B, T, C], k [B], keep [B, 1]) -> predicted noise [B, T, C]."""
Bounds: TypeAlias = tuple[Array | float, Array | float]
"""What plans are clipped to: numbers, or [C] each."""


def q_sample(schedule: Schedule, x0: jax.Array, k: jax.Array, noise: jax.Array) -> jax.Array:
    """x_k of data: the forward process.

    Args:
        schedule: tables of the K steps.
        x0: [B, T, C].
        k: [B] int32.
        noise: eps [B, T, C].

    Returns:
        [B, T, C].
    """
    signal, sigma = (jnp.asarray(t)[k][:, None, None] for t in (schedule.signal, schedule.sigma))
    return signal * x0 + sigma * noise


def data_from_noise(schedule: Schedule, x: jax.Array, k: jax.Array, noise: jax.Array) -> jax.Array:
    """The data that x_k is made of if `noise` is what was added; meaningless at k ~ K.

    Args:
        schedule: tables of the K steps.
        x: x_k [B, T, C].
        k: [B] int32.
        noise: eps [B, T, C].

    Returns:
        x_0 [B, T, C].
    """
    tables = schedule.inverse_signal, schedule.inverse_snr
    scale, share = (jnp.asarray(table)[k][:, None, None] for table in tables)
    return scale * x - share * noise


def posterior(
    schedule: Schedule, x0: jax.Array, x: jax.Array, k: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """q(x_{k-1} | x_0, x_k), a Gaussian.

    Args:
        schedule: tables of the K steps.
        x0: [B, T, C].
        x: x_k [B, T, C].
        k: [B] int32.

    Returns:
        Mean [B, T, C] and log variance [B, 1, 1].
    """
    coef1 = jnp.asarray(schedule.mean_coef1)[k][:, None, None]
    coef2 = jnp.asarray(schedule.mean_coef2)[k][:, None, None]
    log_variance = jnp.asarray(schedule.posterior_log_variance)[k][:, None, None]
    return coef1 * x0 + coef2 * x, log_variance


def put_present(x: jax.Array, present: jax.Array) -> jax.Array:
    """x [B, T, C] with the first channels of position 0 replaced by `present` [B, <= C]."""
    return x.at[:, 0, : present.shape[-1]].set(present)


def diffusion_loss(
    predict: Noise,
    schedule: Schedule,
    x0: jax.Array,
    k: jax.Array,
    noise: jax.Array,
    keep: jax.Array,
    state_channels: int,
) -> jax.Array:
    """The loss of predicted noise, section 3 of the paper.

    Args:
        predict: the network with its condition.
        schedule: tables.
        x0: [B, T, C] aligned windows.
        k: [B] int32 steps.
        noise: [B, T, C].
        keep: [B, 1] 0 where the condition is dropped.
        state_channels: how many channels of position 0 are the present state, which stays clean.

    Returns:
        [] the sum over all that is predicted, over B T C.
    """
    x = put_present(q_sample(schedule, x0, k, noise), x0[:, 0, :state_channels])
    error = jnp.square(predict(x, k, keep) - noise)
    return put_present(error, jnp.zeros_like(error[:, 0, :state_channels])).mean()


def guided(predict: Noise, weight: float) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """eps_0 + w (eps_R - eps_0) as a function of (x [B, T, C], k [B]), from one call of `predict`.

    The batch is doubled, unless w is 0 or 1 and one half of it would be thrown away.
    """

    def one(x: jax.Array, k: jax.Array) -> jax.Array:
        return predict(x, k, jnp.full((x.shape[0], 1), weight, x.dtype))

    def both(x: jax.Array, k: jax.Array) -> jax.Array:
        size = x.shape[0]
        keep = jnp.repeat(jnp.array([1.0, 0.0], x.dtype), size)[:, None]
        found = predict(jnp.concatenate([x, x]), jnp.concatenate([k, k]), keep)
        return found[size:] + weight * (found[:size] - found[size:])

    return one if weight in (0.0, 1.0) else both


def ancestral_step(
    schedule: Schedule,
    predicted: jax.Array,
    x: jax.Array,
    k: jax.Array,
    noise: jax.Array,
    bounds: Bounds,
) -> jax.Array:
    """One of the K steps: the data are predicted and clipped, then x_{k-1} is drawn.

    Args:
        schedule: tables.
        predicted: [B, T, C] noise.
        x: [B, T, C].
        k: [B] int32; at 0 nothing is drawn.
        noise: [B, T, C].
        bounds: of the data.

    Returns:
        [B, T, C].
    """
    x0 = jnp.clip(data_from_noise(schedule, x, k, predicted), *bounds)
    mean, log_variance = posterior(schedule, x0, x, k)
    scale = jnp.where(k > 0, 1.0, 0.0)[:, None, None]
    return mean + scale * jnp.exp(0.5 * log_variance) * noise


def strided_step(
    tables: Strided, predicted: jax.Array, x: jax.Array, place: jax.Array, noise: jax.Array
) -> jax.Array:
    """From a step of the grid to the one before.

    Args:
        tables: of the grid.
        predicted: [B, T, C] noise.
        x: [B, T, C].
        place: [] int32 which step of the grid; at 0 no noise is added.
        noise: [B, T, C].

    Returns:
        [B, T, C], not clipped.
    """
    alpha, coefficient = jnp.asarray(tables.alpha)[place], jnp.asarray(tables.noise_coef)[place]
    scale = jnp.sqrt(jnp.asarray(tables.variance)[place])
    return (x - coefficient * predicted) / alpha + scale * noise


def within_bounds(
    tables: Strided, predicted: jax.Array, x: jax.Array, place: jax.Array, bounds: Bounds
) -> jax.Array:
    """The noise in x if the data that follow from the predicted one are clipped.

    Args:
        tables: of the grid.
        predicted: [B, T, C] noise.
        x: [B, T, C].
        place: [] int32 which step of the grid.
        bounds: of the data.

    Returns:
        [B, T, C] noise.
    """
    abar = jnp.asarray(tables.abar)[place]
    signal, sigma = jnp.sqrt(abar), jnp.sqrt(1.0 - abar)
    return (x - signal * jnp.clip((x - sigma * predicted) / signal, *bounds)) / sigma


def grid_size(config: DiffusionConfig) -> int:
    """G: network calls of a plan."""
    return config.steps if config.sampler == "ddpm" else config.steps // config.stride


def _steps(config: DiffusionConfig) -> np.ndarray:
    """[G] int32: the diffusion steps that a plan takes, from the least noisy one on."""
    stride = 1 if config.sampler == "ddpm" else config.stride
    return np.asarray(strided(config.steps, stride, grid=config.grid).steps)


def noised(config: DiffusionConfig, x0: jax.Array, noise: jax.Array, calls: int) -> jax.Array:
    """Data as noisy as `denoise` expects them before its last `calls` steps (a warm start).

    Args:
        config: sampler and its stride; static.
        x0: [B, T, C].
        noise: eps [B, T, C].
        calls: of the network that are left, static.

    Returns:
        [B, T, C].
    """
    k = jnp.full(x0.shape[0], _steps(config)[calls - 1], jnp.int32)
    return q_sample(cosine_schedule(config.steps), x0, k, noise)


def denoise(
    predict: Callable[[jax.Array, jax.Array], jax.Array],
    config: DiffusionConfig,
    x: jax.Array,
    present: jax.Array,
    bounds: Bounds,
    noise: Callable[[jax.Array], jax.Array],
    calls: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Turns noise into plans, one network call a step of a scan, algorithm 2.

    Args:
        predict: (x [B, T, C], k [B]) -> noise, as `guided` returns it.
        config: sampler, steps, stride, eta; static.
        x: [B, T, C] where to start.
        present: [B, <= C] what position 0 begins with, at every step.
        bounds: what is clipped at every step: the strided sampler's result with `config.clip` =
            "plan", else the predicted data.
        noise: number [] of a step, 0 first -> [B, T, C] noise of this step.
        calls: how many steps are taken, the last ones of the grid; None: all. Static.

    Returns:
        The plans, and x before the first and after every step, [calls + 1, B, T, C].
    """
    calls = grid_size(config) if calls is None else calls
    schedule = cosine_schedule(config.steps)
    grid = strided(config.steps, config.stride, config.eta, config.grid)
    solve = solver(config.steps, config.stride, config.grid)
    steps = jnp.asarray(_steps(config))

    def step(carry: tuple[jax.Array, jax.Array], number: jax.Array):
        x, before = carry
        place = calls - 1 - number
        k = jnp.full(x.shape[0], steps[place], jnp.int32)
        predicted = predict(x, k)
        if config.sampler == "ddpm":
            x = ancestral_step(schedule, predicted, x, k, noise(number), bounds)
        elif config.sampler == "strided":
            drawn = noise(number) if config.eta > 0 else jnp.zeros_like(x)
            if config.clip == "data":
                predicted = within_bounds(grid, predicted, x, place, bounds)
            x = strided_step(grid, predicted, x, place, drawn)
            if config.clip == "plan":
                x = jnp.clip(x, *bounds)
        else:
            at = [jnp.asarray(table)[place] for table in solve[1:]]
            signal, sigma, x_coef, data_coef, extrapolation = at
            data = jnp.clip((x - sigma * predicted) / signal, *bounds)
            # The first step has no prediction before it.
            further = jnp.where(number > 0, extrapolation, 0.0)
            x = x_coef * x + data_coef * (data + further * (data - before))
            before = data
        x = put_present(x, present)
        return (x, before), x

    x = put_present(x, present)
    (plan, _), trace = jax.lax.scan(step, (x, jnp.zeros_like(x)), jnp.arange(calls))
    return plan, jnp.concatenate([x[None], trace])


def sample_plan(
    key: jax.Array,
    predict: Noise,
    config: DiffusionConfig,
    present: jax.Array,
    shape: tuple[int, int],
    bounds: Bounds,
) -> jax.Array:
    """Plans from fresh noise.

    Args:
        key: [] typed key.
        predict: the network with its condition.
        config: guidance and sampler; static.
        present: [E, <= C] aligned present states.
        shape: (T, C) of a plan; static.
        bounds: what plans are clipped to.

    Returns:
        [E, T, C] plans whose position 0 is `present`.
    """
    start_key, step_key = jax.random.split(key)
    full = (present.shape[0], *shape)

    def noise(number: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(step_key, number), full, present.dtype)

    start = jax.random.normal(start_key, full, present.dtype)
    return denoise(guided(predict, config.guidance), config, start, present, bounds, noise)[0]
