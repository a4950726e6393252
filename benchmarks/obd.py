"""Offline Behavior Distillation: one outer step at the paper's size, and many sets at once.

Hopper's sizes, Av-PBC, N = 256 pairs, T = 100 inner steps, B = 2560 states, students of width 256.
The data are random: what a step costs doesn't depend on them. Beside our exact modes: the same step
in PyTorch (torch_obd.py) and the published code (reference.json). Gradients alone, against the
number of inner steps: benchmarks/bilevel.py. Returns in the simulator: benchmarks/obd_returns.py.
"""

# PyTorch is optional:
# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.bilevel import describe_memory
from benchmarks.harness import (
    Row,
    Settings,
    Work,
    powers,
    prepare_jax,
    prepare_torch,
    reference,
    time_in_turns,
)
from jaxmethods.obd.config import OBDConfig
from jaxmethods.obd.meta_gradient import MODES
from jaxmethods.obd.method import distiller
from jaxmethods.obd.types import Source
from jaxmethods.offline_rl.policies import init_policy, init_q
from jaxmethods.offline_rl.types import Norm, OfflineData, Teacher

STATES, ACTIONS, ROWS = 11, 3, 200_000
"""Hopper, and as many rows as the published code was measured with."""


def rows(settings: Settings) -> Iterator[Row]:
    """Every mode and PyTorch in turns, then many sets."""
    yield from outer_steps(settings, OBDConfig())
    yield from sets(settings, OBDConfig())


def outer_steps(settings: Settings, config: OBDConfig) -> Iterator[Row]:
    """One outer step of one set, the whole of it: rows, student, gradient, update."""
    source = random_source()
    works = [step_work(config.model_copy(update={"mode": mode}), source, 1) for mode in MODES]
    torch_work = prepare_torch(lambda device: torch_step(config, source, device), settings)
    timings = time_in_turns([*works, *([torch_work] if torch_work else [])], settings)
    theirs = timings[-1] if torch_work else None
    for mode, timing in zip(MODES, timings, strict=False):
        yield Row(
            name="obd/outer_step",
            sizes={"mode": mode, **sizes_of(config), "cores": settings.cores},
            work=60,
            unit="outer steps/min",
            ours=timing,
            reference=reference(f"obd/outer_step_{settings.cores}_cores"),
            torch=theirs,
            note=describe_memory(timing),
        )


def sets(settings: Settings, config: OBDConfig) -> Iterator[Row]:
    """Many sets in one program."""
    source, alone = random_source(), None
    for number in powers(1, 64):
        (timing,) = time_in_turns([step_work(config, source, number)], settings)
        alone = alone or timing.median
        yield Row(
            name="obd/sets",
            sizes={"sets": number, **sizes_of(config), "cores": settings.cores},
            work=60 * number,
            unit="outer steps/min",
            ours=timing,
            reference=reference(f"obd/outer_step_{settings.cores}_cores"),
            note=(
                f"{describe_memory(timing)}, {number * alone / timing.median:.2f}x the rate of one"
            ),
        )
        # A warm-up and three repeats of the next, four times as large.
        if 16 * timing.median > settings.seconds:
            break


def sizes_of(config: OBDConfig) -> dict[str, int]:
    return {"pairs": config.n_syn, "inner": config.inner_steps, "batch": config.batch}


def random_source(rows: int = ROWS, states: int = STATES, actions: int = ACTIONS) -> Source:
    """Normal states, uniform actions, and a teacher that nobody taught."""
    keys = jax.random.split(jax.random.key(0), 5)
    data = OfflineData(
        jax.random.normal(keys[0], (rows, states)),
        jax.random.uniform(keys[1], (rows, actions), minval=-1.0),
    )
    norm = Norm(jnp.zeros(states), jnp.ones(states))
    critics = [init_q(key, states, actions) for key in keys[2:4]]
    teacher = Teacher(init_policy(keys[4], states, actions), critics[0], critics[1], norm)
    return Source(data, norm, teacher)


def step_work(config: OBDConfig, source: Source, number: int) -> Work:
    """The outer step of so many sets, compiled."""
    method = distiller(config)
    keys = jax.random.split(jax.random.key(1), number)
    state = jax.jit(jax.vmap(method.init, (0, None)))(keys, source)
    return prepare_jax(jax.vmap(method.step, (0, None)), state, source, donate=(0,))


def torch_step(config: OBDConfig, source: Source, device: str) -> Callable[[], Any]:
    """The same outer step in PyTorch."""
    import torch

    from benchmarks import torch_obd

    host: Source = jax.device_get(source)
    if host.teacher is None:
        raise ValueError("the benchmark's source has a teacher")

    def tensor(values: Any) -> Any:
        return torch.tensor(values, device=device)

    states = host.data.states.shape[1]
    teacher = torch_obd.Teacher(
        torch_obd.flatten(host.teacher.policy, device),
        [tensor(leaf) for layer in host.teacher.q1 for leaf in layer],
        torch.ones(states, device=device),
        torch.zeros(states, device=device),
    )
    distillation = torch_obd.Distillation(
        config, tensor(host.data.states), tensor(host.data.actions), teacher
    )
    return distillation.step
