"""Can CW10's data be made again? metaworld's scripted experts on its ten tasks.

    python -m venv scratch && scratch/bin/pip install metaworld
    scratch/bin/python benchmarks/metaworld_experts.py --json experts.json

Runs alone, in an environment of its own: metaworld pins MuJoCo to a version that this library's
other environments were not checked with. An episode succeeds where the task says so at any step.
"""

from __future__ import annotations

import argparse
import importlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

CW10 = (
    "hammer",
    "push-wall",
    "faucet-close",
    "push-back",
    "stick-pull",
    "handle-press-side",
    "push",
    "shelf-place",
    "window-close",
    "peg-unplug-side",
)
STEPS = 200
"""Length of an episode in Continual World."""


def measure(episodes: int) -> dict[str, Any]:
    """Sizes, successes and returns of every task's expert."""
    metaworld: Any = importlib.import_module("metaworld")
    policies: Any = importlib.import_module("metaworld.policies").ENV_POLICY_MAP
    found: dict[str, Any] = {name: version(name) for name in ("metaworld", "mujoco", "gymnasium")}
    found["tasks"] = []
    for short in CW10:
        name = f"{short}-v3"
        benchmark = metaworld.MT1(name, seed=0)
        env, expert = benchmark.train_classes[name](), policies[name]()
        played = [_episode(env, expert, task) for task in benchmark.train_tasks[:episodes]]
        row = {
            "task": name,
            "observations": env.observation_space.shape[0],
            "actions": env.action_space.shape[0],
            "episodes": episodes,
            "success": float(np.mean([one[0] for one in played])),
            "return": float(np.mean([one[1] for one in played])),
        }
        found["tasks"].append(row)
        print(json.dumps(row), flush=True)
    return found


def _episode(env: Any, expert: Any, task: Any) -> tuple[bool, float]:
    """Whether the expert succeeded, and its return."""
    env.set_task(task)
    observation, _ = env.reset()
    success, total = False, 0.0
    for _ in range(STEPS):
        action = np.clip(expert.get_action(observation), -1.0, 1.0)
        observation, reward, _, _, told = env.step(action)
        success, total = success or bool(told["success"]), total + float(reward)
    return success, total


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = measure(given.episodes)
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
