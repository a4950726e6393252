"""The paper's comparison on one dataset: Random, DBC, PBC, PBC-scaled and Av-PBC in MuJoCo.

    python -m benchmarks.obd_returns --data hopper-mixed.npz --teacher hopper-calql.npz \
        --env hopper --pairs 64 --batch 1024 --steps 200 --seeds 1 2 3 --json hopper-64.json

All distillation seeds of an objective are one vmapped program. At every `--evaluate-every` steps
students are trained from scratch on each set and play; Random is the set before the first step.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmethods.files import write_atomically
from jaxmethods.numerics.statistics import standard_error
from jaxmethods.obd.config import OBDConfig
from jaxmethods.obd.method import State, distiller
from jaxmethods.obd.recipes.teacher_files import load_teacher
from jaxmethods.obd.students import train_students
from jaxmethods.obd.types import Source, SynSet
from jaxmethods.offline_rl.dataset import load_offline
from jaxmethods.offline_rl.mujoco_returns import evaluate_returns
from jaxmethods.offline_rl.scores import normalized_score
from jaxmethods.records.provenance import describe_environment

OBJECTIVES = ("avpbc", "pbc", "pbc_scaled", "dbc")
CHUNK = 10
"""Outer steps of one dispatch."""


class Comparison(NamedTuple):
    """What is fixed in a comparison."""

    source: Source
    env: str
    config: OBDConfig
    seeds: list[int]
    students: int
    episodes: int


def main() -> int:
    options = parse()
    data, norm = load_offline(options.data)
    comparison = Comparison(
        Source(data, norm, load_teacher(options.teacher)),
        options.env,
        OBDConfig(n_syn=options.pairs, batch=options.batch, mode=options.mode),
        options.seeds,
        options.students,
        options.episodes,
    )
    result: dict[str, Any] = {
        "environment": describe_environment(),
        "options": {name: str(value) for name, value in vars(options).items()},
        "rows": [],
    }
    for objective in options.objectives:
        for row in distill(comparison, objective, options.steps, options.evaluate_every):
            if row["step"] or not any(r["step"] == 0 for r in result["rows"]):
                result["rows"].append(row)
                print(describe(row), flush=True)
                if options.json:
                    write_atomically(options.json, json.dumps(result, indent=1) + "\n")
    return 0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.obd_returns", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--env", required=True, help="hopper, halfcheetah or walker2d")
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=OBJECTIVES)
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2560)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--evaluate-every", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--students", type=int, default=10)
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--mode", default="mixed")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def distill(comparison: Comparison, objective: str, steps: int, every: int) -> Any:
    """Yields a row at step 0 and at every `every` steps."""
    method = distiller(comparison.config.model_copy(update={"objective": objective}))
    source = comparison.source
    keys = jax.vmap(jax.random.key)(np.array(comparison.seeds))
    state = jax.jit(jax.vmap(method.init, (0, None)))(keys, source)

    def chunk(state: State, source: Source) -> tuple[State, Any]:
        def one(state: State, _: None) -> tuple[State, Any]:
            return jax.vmap(method.step, (0, None))(state, source)

        return jax.lax.scan(one, state, length=CHUNK)

    run = jax.jit(chunk, donate_argnums=0)
    yield judge(comparison, "random", 0, state.syn, 0.0)
    start = time.perf_counter()
    for step in range(CHUNK, steps + 1, CHUNK):
        state, metrics = run(state, source)
        loss = np.asarray(metrics["loss"]).mean()
        print(f"{objective} step {step} loss {loss:.4f}", file=sys.stderr, flush=True)
        if step % every == 0 or step == steps:
            seconds = time.perf_counter() - start
            yield judge(comparison, objective, step, state.syn, seconds)


def judge(
    comparison: Comparison, objective: str, step: int, syn: SynSet, seconds: float
) -> dict[str, Any]:
    """Normalized scores [seeds, students] of students trained on the sets [seeds, N, ...]."""
    trained = jax.jit(lambda key, syn: train_students(key, syn, n_students=comparison.students))
    scores = []
    for seed, states, actions in zip(comparison.seeds, *syn, strict=True):
        params = trained(jax.random.key(10_000 + seed), SynSet(states, actions))
        returns = evaluate_returns(
            comparison.env, params, comparison.source.norm, comparison.episodes
        )
        scores.append(normalized_score(comparison.env, returns).mean(-1).tolist())
    return {"objective": objective, "step": step, "seconds": seconds, "scores": scores}


def describe(row: dict[str, Any]) -> str:
    """Mean over all students; standard errors over distillation seeds and over students."""
    scores = np.array(row["scores"])
    means = scores.mean(1)
    over_seeds = standard_error(means) if len(means) > 1 else float("nan")
    over_students = standard_error(scores.ravel())
    return (
        f"| {row['objective']} | {row['step']} | {scores.mean():.1f} | {over_seeds:.1f} | "
        f"{over_students:.1f} | {', '.join(f'{m:.1f}' for m in means)} |"
    )


if __name__ == "__main__":
    sys.exit(main())
