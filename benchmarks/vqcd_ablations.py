"""What VQ-CD's pieces are worth: alignments, masks, actions, networks and samplers over two tasks.

    python -m benchmarks.vqcd_ablations --out runs/ablations --json ablations.json

The config's learners are one run. Alignments, and the shape of the preset `paper` (first multiplier
2, deeper autoencoders; narrow here), are runs of their own. How plans are sampled changes nothing
that is trained: the samplers play with the first run's planner, whose plans are timed as well.
Interrupted, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmethods
from benchmarks.harness import Work, prepare_jax
from jaxmethods.files import write_atomically
from jaxmethods.vqcd import Bank, PolicyConfig, TaskSpace, TaskWeights, plan, task_weights
from jaxmethods.vqcd.config import DiffusionConfig, Run
from jaxmethods.vqcd.policy import align_states
from jaxmethods.vqcd.recipes.learners import seed_keys
from jaxmethods.vqcd.recipes.planner_files import Planner, load_planner
from jaxmethods.vqcd.recipes.play import play
from jaxmethods.vqcd.recipes.tasks import Tasks

DEEPER = {
    "encoder": [256, 256, 256],
    "decoder": [128, 128, 128],
    "activation": "leaky_relu",
}
RUNS: dict[str, dict[str, Any]] = {
    "pieces": {},
    **{
        kind: {
            "learners": ["vqcd"],
            "alignment": {"states": {"kind": kind}, "actions": {"kind": kind}},
        }
        for kind in ("ae", "vae", "fsq", "pad")
    },
    "paper_shape": {
        "learners": ["vqcd"],
        "alignment": {"states": DEEPER, "actions": DEEPER},
        "planner": {"network": {"dim": 16, "multipliers": [2, 2, 4], "horizon": 8}},
    },
}
"""Name of a run's folder to what it changes in the config."""
SAMPLERS: dict[str, dict[str, Any]] = {
    "10 strided": {},
    "10 strided, data clipped": {"clip": "data"},
    "10 strided, data clipped, last steps": {"clip": "data", "grid": "last"},
    "10 strided, no noise": {"eta": 0.0},
    "10 dpm-solver++": {"sampler": "dpm-solver++"},
    "10 dpm-solver++, last steps": {"sampler": "dpm-solver++", "grid": "last"},
    "50 strided": {"stride": 4},
    "50 strided, data clipped": {"stride": 4, "clip": "data"},
    "200 ddpm": {"sampler": "ddpm"},
}


def measure(config: Path, out: Path, episodes: int) -> Iterator[dict[str, Any]]:
    """Rows of every learner of every run, of every sampler, and of swapped owners."""
    for name, changes in RUNS.items():
        run = jaxmethods.run(config, out / name, resume=True, **changes)
        assert isinstance(run.config, Run)
        found = run.metrics["summary"]
        summary = run.results["summary"]
        for learner in run.config.learners:
            title = learner.title
            yield {
                "run": name,
                "learner": title,
                "scores": summary[f"{title}_matrix"][:, :, -1].mean(0).tolist(),
                "errors_over_episodes": summary[f"{title}_errors"].mean(0).tolist(),
                "forgetting": float(found[f"{title}_forgetting"].mean()),
            }
        if name == "pieces":
            yield from samplers(run.config, load_planner(out / name / "planner"), episodes)


def samplers(run: Run, planner: Planner, episodes: int) -> Iterator[dict[str, Any]]:
    """Scores and times of one planner's plans, by sampler, and scores with the owners swapped.

    First states and keys are the same for all.
    """
    evaluation = run.evaluation.model_copy(update={"episodes": episodes})
    tasks = Tasks(run.model_copy(update={"evaluation": evaluation}))

    def scores(policy: PolicyConfig, bank: Bank) -> dict[str, Any]:
        means, errors = [], []
        for number, task in enumerate(run.tasks):
            weights = _one(task_weights(planner.planner, bank, number))
            keys = seed_keys(run, f"samplers {task.name}")[:1]
            target = planner.card["tasks"][number]["target"]
            space = _own(planner.spaces[task.name])
            played = play(tasks, policy, number, weights, space, target, keys)
            found = np.asarray(tasks.score(number, played.returns))[0]
            means.append(float(found.mean()))
            errors.append(float(found.std(ddof=1) / episodes**0.5))
        return {"scores": means, "errors_over_episodes": errors, "episodes": episodes}

    for name, changes in SAMPLERS.items():
        diffusion = planner.planner.diffusion.model_dump() | changes
        inner = planner.policy.planner.model_copy(
            update={"diffusion": DiffusionConfig.model_validate(diffusion)}
        )
        policy = planner.policy.model_copy(update={"planner": inner})
        work = _plan_work(policy, planner, run.tasks[0].name)
        milliseconds = 1000 * _median(work)
        yield {"sampler": name, "milliseconds_a_plan": milliseconds} | scores(policy, planner.bank)
    swapped = jax.tree.map(
        lambda owner: None if owner is None else jnp.where(owner < 2, 1 - owner, owner),
        planner.bank.owner,
        is_leaf=lambda leaf: leaf is None,
    )
    yield {"owners": "swapped"} | scores(planner.policy, planner.bank._replace(owner=swapped))


def _one(tree: Any) -> Any:
    """With an axis of one seed."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], tree)


def _own(space: TaskSpace) -> TaskSpace:
    own = ("state_module", "action_module", "low", "high")
    return space._replace(**{part: _one(getattr(space, part)) for part in own})


def _plan_work(policy: PolicyConfig, planner: Planner, task: str) -> Work:
    """One plan for one episode."""
    space = planner.spaces[task]
    observations = jnp.zeros((1, space.states.shift.shape[-1]))

    def once(weights: TaskWeights, observations: jax.Array, key: jax.Array) -> jax.Array:
        present = align_states(policy, space, observations)
        return plan(policy.planner, weights, space, 0.9, present, key)

    return prepare_jax(once, planner.weights(task), observations, jax.random.key(0))


def _median(work: Work, repeats: int = 9) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work.call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("configs/vqcd/ablations.yaml"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=30)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    for row in measure(given.config, given.out, given.episodes):
        rows.append(row)
        print(json.dumps(row), flush=True)
        if given.json is not None:
            write_atomically(given.json, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
