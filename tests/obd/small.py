"""A distillation small enough to be differentiated by hand: S = 5, A = 2, H = 8, N = 6, T = 4."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmethods.obd.config import OBDConfig, StudentConfig
from jaxmethods.obd.objectives import OuterBatch
from jaxmethods.obd.types import Source, SynSet
from jaxmethods.offline_rl import policies as policy
from jaxmethods.offline_rl.types import Norm, OfflineData, Teacher
from tests.programs import once

S, A, H, N, T, B, L = 5, 2, 8, 6, 4, 12, 50
CONFIG = OBDConfig(n_syn=N, inner_steps=T, batch=B, student=StudentConfig(hidden=H))


@once
def student(seed: int = 0):
    return policy.init_policy(jax.random.key(seed), S, A, H)


@once
def _networks():
    """Actor and two critics."""
    keys = jax.random.split(jax.random.key(1), 3)
    actor = policy.init_policy(keys[0], S, A, H)
    return actor, *(policy.init_q(key, S, A, H) for key in keys[1:])


def teacher(norm: Norm | None = None) -> Teacher:
    norm = Norm(jnp.zeros(S), jnp.ones(S)) if norm is None else norm
    return Teacher(*_networks(), norm)


@once
def source() -> Source:
    keys = jax.random.split(jax.random.key(2), 2)
    states = jax.random.normal(keys[0], (L, S))
    actions = jax.random.uniform(keys[1], (L, A), minval=-1.0)
    return Source(OfflineData(states, actions), Norm(jnp.zeros(S), jnp.ones(S)), teacher())


@once
def syn() -> SynSet:
    data = source().data
    return SynSet(data.states[:N], data.actions[:N])


@once
def noise(steps: int = T, rows: int = N):
    return jax.random.normal(jax.random.key(3), (steps, rows, A))


@once
def batch() -> OuterBatch:
    keys = jax.random.split(jax.random.key(4), 4)
    return OuterBatch(
        jax.random.normal(keys[0], (B, S)),
        jax.random.uniform(keys[1], (B, A), minval=-1.0),
        jax.random.uniform(keys[2], (B,), minval=0.5, maxval=2.0),
        jax.random.normal(keys[3], (B, A)),
    )
