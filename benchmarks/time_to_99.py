"""How long the demo's team takes to succeed in 99 % of 1000 fresh episodes, played greedily.

The run of configs/commformer/demo.yaml, judged whenever that run would judge it. Seconds are those
of training: compilation and evaluation stay out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import jax

from benchmarks.harness import Row, Settings, Timing
from jaxmethods.commformer.recipes.train import Run, recipe
from jaxmethods.config import read_yaml, validate
from jaxmethods.stages import Train
from jaxmethods.training.loop import compile_chunk, init_state, seed_keys

DEMO = Path(__file__).parents[1] / "configs/commformer/demo.yaml"
GOAL = 0.99
SEEDS = (0, 1, 2)


def rows(settings: Settings) -> Iterator[Row]:
    """One row of all seeds: the middle one's seconds; its note says who ended short of the goal."""
    run = validate(Run, read_yaml(DEMO), str(DEMO))
    (stage,) = recipe(run).stages
    assert isinstance(stage, Train)
    assert stage.evaluation is not None
    evaluate = jax.jit(jax.vmap(stage.evaluation.measure, (0, None, 0)))
    every, chunk = run.training.evaluate_every, None
    seconds, steps, notes = [], [], []
    for seed in SEEDS:
        keys, evaluation_keys = seed_keys(run.model_copy(update={"seed": seed}))
        state = init_state(stage.method, keys, None)
        chunk = chunk or compile_chunk(stage.method, state, None, every)
        taken, updates, success = 0.0, 0, 0.0
        while updates < stage.steps and success < GOAL:
            count = min(every, stage.steps - updates)
            start = time.perf_counter()
            state, _ = jax.block_until_ready(chunk.run(state, None, jax.numpy.int32(count)))
            taken += time.perf_counter() - start
            updates += count
            success = evaluate(state, None, evaluation_keys)["success_rate"].item()
        seconds.append(taken)
        steps.append(updates * run.ppo.environments * run.ppo.rollout)
        reached = "" if success >= GOAL else " (NOT the goal)"
        notes.append(f"{success:.1%} after {steps[-1]} steps, {taken:.1f} s{reached}")
    middle = sorted(range(len(SEEDS)), key=seconds.__getitem__)[len(SEEDS) // 2]
    assert chunk is not None
    sizes = {"environments": run.ppo.environments, "rollout": run.ppo.rollout}
    yield Row(
        name="commformer/time_to_99",
        sizes={**sizes, "epochs": run.ppo.epochs, "seeds": len(SEEDS), "cores": settings.cores},
        work=steps[middle],
        unit="environment steps/s",
        ours=Timing(seconds[middle], min(seconds), max(seconds), chunk.compile_seconds),
        note="; ".join(notes),
    )
