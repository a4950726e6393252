"""A stand-in for Meta-World: a point on a line that has to come to 6."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np

TASKS = ("press-v3", "hammer-v3")


class Line:
    """The first coordinate moves by the first action; it is solved from 6 on."""

    def set_task(self, task):
        self.start = task

    def reset(self):
        self.place = float(self.start)
        return self._observed(), {}

    def step(self, action):
        self.place += float(np.clip(action, -1, 1)[0])
        return self._observed(), 0.0, False, False, {"success": float(self.place >= 6.0)}

    def _observed(self):
        return np.full(39, self.place)


class Forwards:
    """An expert whose actions leave [-1, 1]."""

    def get_action(self, observation):
        assert observation.shape == (39,)
        return np.full(4, 2.0)


def install(monkeypatch):
    """Puts the stand-in where Meta-World would be imported from."""

    def single(task, seed):
        # Straight on it takes 3, 7, ..., 31 steps.
        classes = dict.fromkeys(TASKS, Line)
        return SimpleNamespace(
            train_classes=classes, train_tasks=[3 - 4 * ((seed + n) % 8) for n in range(50)]
        )

    module, policies = ModuleType("metaworld"), ModuleType("metaworld.policies")
    module.ALL_V3_ENVIRONMENTS = dict.fromkeys(TASKS, Line)
    module.MT1 = single
    policies.ENV_POLICY_MAP = dict.fromkeys(TASKS, Forwards)
    monkeypatch.setitem(sys.modules, "metaworld", module)
    monkeypatch.setitem(sys.modules, "metaworld.policies", policies)
