"""A distillation small enough to be differentiated by hand: S = 5, A = 2, H = 8, N = 6, T = 4."""

from __future__ import annotations

import numpy as np

from jaxmethods.obd.config import OBDConfig, StudentConfig
from jaxmethods.obd.objectives import OuterBatch
from jaxmethods.obd.types import Source, SynSet
from jaxmethods.offline_rl import policies as policy
from jaxmethods.offline_rl.types import Norm, OfflineData, Teacher
from tests.programs import floats, normal, uniform, weights

S, A, H, N, T, B, L = 5, 2, 8, 6, 4, 12, 50
CONFIG = OBDConfig(n_syn=N, inner_steps=T, batch=B, student=StudentConfig(hidden=H))


def student(seed: int = 0):
    return weights(policy.init_policy, S, A, H, seed=seed, scale=0.4)


def _networks():
    """Actor and two critics."""
    actor = weights(policy.init_policy, S, A, H, seed=1, scale=0.4)
    return actor, *(weights(policy.init_q, S, A, H, seed=seed, scale=0.4) for seed in (2, 3))


def teacher(norm: Norm | None = None) -> Teacher:
    norm = Norm(np.zeros(S, floats()), np.ones(S, floats())) if norm is None else norm
    return Teacher(*_networks(), norm)


def source() -> Source:
    data = OfflineData(normal(2, L, S), uniform(3, -1.0, 1.0, L, A))
    return Source(data, Norm(np.zeros(S, floats()), np.ones(S, floats())), teacher())


def syn() -> SynSet:
    data = source().data
    return SynSet(data.states[:N], data.actions[:N])


def noise(steps: int = T, rows: int = N):
    return normal(4, steps, rows, A)


def batch() -> OuterBatch:
    return OuterBatch(
        normal(5, B, S), uniform(6, -1.0, 1.0, B, A), uniform(7, 0.5, 2.0, B), normal(8, B, A)
    )
