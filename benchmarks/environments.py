"""Environment steps per second against the number of environments simulated in parallel.

Random actions, automatic reset and observations included: what a roll-out pays for a simulator.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarks.harness import Row, Settings, powers, reference, time_jax
from jaxmethods import envs

PRESETS = {
    "predator_prey": "reference",
    "predator_capture_prey": "reference",
    "traffic_junction": "easy",
}
STEPS = 32
"""Steps taken by one call, so that dispatch is not what is measured."""
LARGEST = 65_536


def rows(settings: Settings) -> Iterator[Row]:
    """One row for each environment and size, until a call takes too long."""
    for name, preset in PRESETS.items():
        env = envs.make(name, preset=preset)
        for environments in powers(1, LARGEST):
            row = measure(name, env, environments, settings)
            yield row
            if row.ours.median * 8 > settings.seconds:
                break


def measure(name: str, env: envs.TeamEnvironment, environments: int, settings: Settings) -> Row:
    """Times `STEPS` steps of so many environments."""
    vectorised = envs.vectorise(env)
    state, timestep = jax.jit(vectorised.reset)(jax.random.split(jax.random.key(0), environments))

    def random_policy(key: jax.Array, observation: envs.Observation) -> tuple[jax.Array, tuple]:
        shape = observation.action_mask.shape[:-1]
        return jax.random.randint(key, shape, 0, env.num_actions), ()

    def run(carry: tuple) -> tuple:
        state, timestep, key, total = carry
        state, timestep, key, trajectory = envs.rollout(
            vectorised, random_policy, state, timestep, key, STEPS
        )
        # Everything an agent would be shown is used, or XLA would leave it out.
        seen = trajectory.observation.agents_view.sum(dtype=jnp.int32)
        return state, timestep, key, total + seen + trajectory.reward.sum()

    start = (state, timestep, jax.random.key(1), jnp.float32(0))
    timing = time_jax(lambda carry: (run(carry),), start, settings=settings, donate=(0,))
    return Row(
        name=f"environments/{name}",
        sizes={"environments": environments, "cores": settings.cores},
        work=environments * STEPS,
        unit="environment steps/s",
        ours=timing,
        reference=reference(f"environments/{name}"),
    )
