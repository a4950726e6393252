"""VQ-CD: one training step and one plan, at the sizes that the paper's code could have had.

C = 20, A = 10, T = 8, batch 32, K = 200, 10 sampling steps, four tasks; dim 32 with multipliers (1,
2, 4) has 1.0 M weights, dim 64 with (1, 4, 8) has 15 M. The data are random: what a step costs
doesn't depend on them. Beside ours: the same work in PyTorch (torch_vqcd.py). `convolution` shows
where XLA's convolution and matrix products win, `live taps` are rows with `compact=1`.
"""

# PyTorch is optional:
# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Row, Settings, Work, prepare_jax, prepare_torch, time_in_turns
from jaxmethods import vqcd
from jaxmethods.vqcd.inverse_dynamics import inverse_dynamics
from jaxmethods.vqcd.spaces.aligner import aligner, alignment_rows, parallel

ROWS, CHANNELS, ACTIONS, EPISODES = 20_000, 20, 10, 30
SIZES = {32: (1, 2, 4), 64: (1, 4, 8)}
"""Multipliers of each dim."""


def rows(settings: Settings) -> Iterator[Row]:
    """Training, plans, samplers, convolutions, alignment."""
    for dim in SIZES:
        yield from training(settings, dim)
        for episodes in (1, EPISODES):
            yield from plans(settings, dim, episodes)
    yield from samplers(settings)
    yield from convolutions(settings)
    yield from alignments(settings)


def config_of(dim: int, **network: Any) -> vqcd.PlannerConfig:
    """The planner of a width."""
    multipliers = SIZES.get(dim, (1,))
    return vqcd.PlannerConfig(
        network=vqcd.TemporalNetworkConfig(
            channels=CHANNELS, dim=dim, multipliers=multipliers, **network
        ),
        tasks=4,
        action_channels=ACTIONS,
    )


def training(settings: Settings, dim: int) -> Iterator[Row]:
    """One update of one task's weights and their average, windows included."""
    both = (False, True)
    works = [train_work(config_of(dim, compact=compact)) for compact in both]
    theirs = prepare_torch(lambda device: torch_training(config_of(dim), device), settings)
    timings = time_in_turns([*works, *([theirs] if theirs else [])], settings)
    for compact, timing in zip(both, timings, strict=False):
        yield Row(
            name="vqcd/train",
            sizes={"dim": dim, "compact": int(compact), "cores": settings.cores},
            work=1,
            unit="updates/s",
            ours=timing,
            torch=timings[2] if theirs else None,
        )


def plans(settings: Settings, dim: int, episodes: int) -> Iterator[Row]:
    """Guided plans of ten steps, and their actions."""
    both = (False, True)
    works = [plan_work(config_of(dim, compact=compact), episodes) for compact in both]
    theirs = prepare_torch(
        lambda device: torch_planning(config_of(dim), device, episodes), settings
    )
    timings = time_in_turns([*works, *([theirs] if theirs else [])], settings)
    for compact, timing in zip(both, timings, strict=False):
        yield Row(
            name="vqcd/plan",
            sizes={
                "dim": dim,
                "episodes": episodes,
                "compact": int(compact),
                "cores": settings.cores,
            },
            work=episodes,
            unit="plans/s",
            ours=timing,
            torch=timings[2] if theirs else None,
        )


def samplers(settings: Settings) -> Iterator[Row]:
    """All 200 steps against fewer."""
    kinds = {"strided": (1, 4, 20), "ddpm": (1,), "dpm-solver++": (20,)}
    cases = [(sampler, stride) for sampler, strides in kinds.items() for stride in strides]
    works = []
    for sampler, stride in cases:
        diffusion = vqcd.DiffusionConfig(sampler=sampler, stride=stride)  # type: ignore[arg-type]
        config = config_of(32).model_copy(update={"diffusion": diffusion})
        works.append(plan_work(config, 1))
    timings = time_in_turns(works, settings)
    for (sampler, stride), timing in zip(cases, timings, strict=True):
        calls = 200 // stride
        yield Row(
            name="vqcd/sampler",
            sizes={"sampler": sampler, "steps": calls, "dim": 32, "cores": settings.cores},
            work=1,
            unit="plans/s",
            ours=timing,
            note=f"{timings[0].median / timing.median:.1f}x the rate of 200 strided steps",
        )


def convolutions(settings: Settings) -> Iterator[Row]:
    """Plans with either way to compute a convolution."""
    for episodes in (1, EPISODES):
        ways = ("matmul", "lax")
        works = [plan_work(config_of(32, convolution=way), episodes) for way in ways]
        for way, timing in zip(ways, time_in_turns(works, settings), strict=True):
            yield Row(
                name="vqcd/convolution",
                sizes={"way": way, "episodes": episodes, "dim": 32, "cores": settings.cores},
                work=episodes,
                unit="plans/s",
                ours=timing,
            )


def alignments(settings: Settings) -> Iterator[Row]:
    """One update of the state modules of one and of four tasks, default sizes, batch 256."""
    random = np.random.default_rng(0)
    config = vqcd.AlignmentConfig()
    for sizes in ((11,), (11, 17, 17, 10)):
        data = alignment_rows([random.normal(size=(2000, n)).astype(np.float32) for n in sizes])
        method = parallel(aligner(config))
        state = jax.jit(method.init)(jax.random.key(0), data)
        (timing,) = time_in_turns([prepare_jax(method.step, state, data, donate=(0,))], settings)
        yield Row(
            name="vqcd/align",
            sizes={"modules": len(sizes), "cores": settings.cores},
            work=len(sizes),
            unit="module updates/s",
            ours=timing,
        )


def train_work(config: vqcd.PlannerConfig) -> Work:
    """A training step, compiled."""
    random = np.random.default_rng(0)
    states, actions = (
        jnp.asarray(random.normal(size=(ROWS, size)), jnp.float32) for size in (CHANNELS, ACTIONS)
    )
    starts = np.arange(ROWS - config.network.horizon)
    data = vqcd.task_data((states, None), (actions, None), starts, random.uniform(size=ROWS))
    bank = vqcd.initial_bank(jax.random.key(0), config)
    method, feed = vqcd.planner(config), vqcd.Feed(data, jnp.int32(0), bank)
    state = method.init(jax.random.key(0), feed)
    return prepare_jax(method.step, state, feed._replace(bank=None), donate=(0,))


def plan_work(config: vqcd.PlannerConfig, episodes: int) -> Work:
    """Plans and actions from aligned states, compiled."""
    bank = vqcd.initial_bank(jax.random.key(0), config)
    weights = vqcd.task_weights(config, bank, 0)
    limits = jnp.full(CHANNELS, 3.0)
    present = jax.random.uniform(jax.random.key(1), (episodes, CHANNELS))

    def act(weights: Any, present: jax.Array, key: jax.Array) -> jax.Array:
        space = vqcd.TaskSpace(None, None, None, None, -limits, limits)  # type: ignore[arg-type]
        plan = vqcd.plan(config, weights, space, 0.8, present, key)
        return inverse_dynamics(weights.inverse, plan[:, 0], plan[:, 1])

    return prepare_jax(act, weights, present, jax.random.key(2))


def torch_training(config: vqcd.PlannerConfig, device: str) -> Callable[[], Any]:
    """The same update in PyTorch."""
    from benchmarks import torch_vqcd

    return torch_vqcd.Training(config, device, ROWS).step


def torch_planning(config: vqcd.PlannerConfig, device: str, episodes: int) -> Callable[[], Any]:
    """The same plans in PyTorch."""
    from benchmarks import torch_vqcd

    return torch_vqcd.Planning(config, device, episodes).act
