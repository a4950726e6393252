"""Environment steps per second against the number of environments simulated in parallel.

Random actions, automatic reset and observations included: what a roll-out pays for a simulator.
Every environment of the registry; Predator-Prey also as batched PyTorch tensors.
"""

# PyTorch is optional:
# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.harness import (
    Row,
    Settings,
    available_bytes,
    powers,
    reference,
    time_jax,
    time_torch,
)
from jaxmethods import envs

PRESETS = {
    "predator_prey": "reference",
    "predator_capture_prey": "reference",
    "traffic_junction": "easy",
}
"""The size that is measured; other environments have that of their defaults."""
NEEDS = {"smax": "jaxmarl"}
"""Packages that an environment is left out without."""
STEPS = 32
"""Steps taken by one call, so that dispatch is not what is measured."""
LARGEST = 65_536


SEEDS = 4
"""Seeds of one mapped program in the rows `environments/NAME seeds`."""


def rows(settings: Settings) -> Iterator[Row]:
    """One row for each environment and size, until time or memory ends it; then those of seeds."""
    yield from _rows(settings, seeds=1)
    yield from _rows(settings, seeds=SEEDS)


def _rows(settings: Settings, seeds: int) -> Iterator[Row]:
    for name in envs.ENVIRONMENTS:
        if name in NEEDS and find_spec(NEEDS[name]) is None:
            continue
        env = envs.make(name, preset=PRESETS.get(name))
        for environments in powers(1 if seeds == 1 else 16, LARGEST // seeds):
            row = measure(name, env, environments, settings, seeds)
            yield row
            # The next size takes four times as long, four times or more over, and as much room.
            too_large = 4 * (row.ours.peak_bytes or 0) > available_bytes()
            if too_large or row.ours.median * 8 > settings.seconds:
                break


def measure(name: str, env: Any, environments: int, settings: Settings, seeds: int = 1) -> Row:
    """Times `STEPS` steps of so many environments, and as many for each further seed."""
    vectorized = envs.vectorize(env)
    keys = jax.random.split(jax.random.key(0), (seeds, environments))
    begun = jax.jit(jax.vmap(vectorized.reset))(keys)
    policy = random_policy(env, masked=name not in PRESETS)

    def run(carry: tuple) -> tuple:
        state, timestep, key = carry
        *after, trajectory = envs.rollout(vectorized, policy, state, timestep, key, STEPS)
        # The roll-out is an output, as training would keep it, or XLA would leave it out.
        return tuple(after), trajectory

    start = (*begun, jax.random.split(jax.random.key(1), seeds))
    if seeds == 1:
        start = jax.tree.map(lambda leaf: leaf[0], start)
    work = run if seeds == 1 else jax.vmap(run)
    timing = time_jax(work, start, settings=settings, donate=(0,))
    other = None
    if name == "predator_prey" and seeds == 1:
        other = time_torch(lambda device: torch_steps(env, environments, device), settings)
    row = f"environments/{name}" if seeds == 1 else f"environments/{name} seeds"
    several = {} if seeds == 1 else {"seeds": seeds}
    return Row(
        name=row,
        sizes={"environments": environments, **several, "cores": settings.cores},
        work=seeds * environments * STEPS,
        unit="environment steps/s",
        ours=timing,
        reference=reference(row),
        torch=other,
    )


def random_policy(env: Any, masked: bool) -> envs.Policy:
    """Uniform actions: in [-1, 1] if continuous, else (`masked`) among those available."""

    def act(key: jax.Array, observation: envs.Observation) -> tuple[jax.Array, tuple]:
        mask = observation.action_mask
        if env.continuous:
            shape = (*mask.shape[:-1], env.num_actions)
            return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0), ()
        if not masked:
            return jax.random.randint(key, mask.shape[:-1], 0, env.num_actions), ()
        return jnp.argmax(mask * jax.random.uniform(key, mask.shape), axis=-1), ()

    return act


def torch_steps(env: envs.PredatorPrey, environments: int, device: str) -> Callable[[], None]:
    """The same steps as batched PyTorch tensors, the roll-out kept as training would keep it."""
    import torch

    from benchmarks.torch_commformer import PredatorPrey

    batched = PredatorPrey(environments, env.n_predators, env.dim, env.vision, device)
    shape = (environments, env.num_agents)
    now = batched.observe()

    def run() -> None:
        nonlocal now
        observed = now.new_empty(STEPS, *now.shape)
        action = torch.empty(STEPS, *shape, dtype=torch.int32, device=device)
        reward = torch.empty(STEPS, *shape, device=device)
        done = torch.empty(STEPS, environments, dtype=torch.bool, device=device)
        for t in range(STEPS):
            observed[t] = now
            action[t] = torch.randint(env.num_actions, shape, device=device)
            now, reward[t], done[t] = batched.step(action[t])

    return run
