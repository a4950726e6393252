"""Does a planner do what it is asked? The same planners play for several targets.

    python -m benchmarks.vqcd_targets --out runs/targets --json targets.json

A config of one task is trained (or its run gone on with), then every seed's planner plays for
quantiles of the data's own returns. All targets see the same first states and noise.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmethods
from jaxmethods.files import write_atomically
from jaxmethods.numerics.statistics import mean_and_error
from jaxmethods.vqcd import TaskSpace
from jaxmethods.vqcd.config import Run
from jaxmethods.vqcd.recipes.learners import seed_keys
from jaxmethods.vqcd.recipes.planner_files import Planner, load_planner
from jaxmethods.vqcd.recipes.play import play
from jaxmethods.vqcd.recipes.tasks import Tasks


def measure(config: Path, out: Path, quantiles: list[float], episodes: int) -> list[dict[str, Any]]:
    """A row for every quantile: scores of all seeds, errors over seeds and over episodes apart."""
    found = jaxmethods.run(config, out, resume=True).config
    assert isinstance(found, Run)
    run = found.model_copy(
        update={"evaluation": found.evaluation.model_copy(update={"episodes": episodes})}
    )
    tasks, name = Tasks(run), run.tasks[0].name
    arrays = tasks.arrays(0)
    returns = arrays.returns_to_go[arrays.starts(run.planner.network.horizon, False)]
    numbers = range(run.seed, run.seed + run.seeds)
    folders = [f"planner-seed{number}" for number in numbers] if run.seeds > 1 else ["planner"]
    planners = [load_planner(out / folder) for folder in folders]
    weights = _stacked([one.weights(name) for one in planners])
    rows = []
    for quantile in quantiles:
        target = float(np.quantile(returns, quantile))
        keys = seed_keys(run, f"targets {name}")
        played = play(tasks, planners[0].policy, 0, weights, _spaces(planners, name), target, keys)
        scores = np.asarray(tasks.score(0, played.returns))  # [seeds, E]
        mean, error = mean_and_error(scores.mean(1))
        within = float((scores.std(1, ddof=1) / episodes**0.5).mean())
        rows.append(
            {
                "quantile": quantile,
                "target": target,
                "scores": scores.mean(1).tolist(),
                "mean": mean,
                "error_over_seeds": error,
                "error_over_episodes": within,
            }
        )
        print(json.dumps(rows[-1]))
    return rows


def _stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _spaces(planners: list[Planner], name: str) -> TaskSpace:
    """What leads to the common space and back; modules and bounds [seeds, ...]."""
    each = [one.spaces[name] for one in planners]
    own = ("state_module", "action_module", "low", "high")
    return each[0]._replace(**{part: _stacked([getattr(x, part) for x in each]) for part in own})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("configs/vqcd/reacher.yaml"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quantiles", type=float, nargs="+", default=[0.2, 0.95])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = measure(given.config, given.out, given.quantiles, given.episodes)
    if given.json is not None:
        write_atomically(given.json, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
