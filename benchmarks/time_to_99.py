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


def rows(settings: Settings) -> Iterator[Row]:
    """One row; if the run ends short of the goal, its note says so."""
    run = validate(Run, read_yaml(DEMO), str(DEMO))
    (stage,) = recipe(run).stages
    assert isinstance(stage, Train)
    assert stage.evaluation is not None
    keys, evaluation_keys = seed_keys(run)
    state = init_state(stage.method, keys, None)
    evaluate = jax.jit(jax.vmap(stage.evaluation.measure, (0, None, 0)))
    every = run.training.evaluate_every
    chunk = compile_chunk(stage.method, state, None, every)
    seconds, updates, success = 0.0, 0, 0.0
    while updates < stage.steps and success < GOAL:
        count = min(every, stage.steps - updates)
        start = time.perf_counter()
        state, _ = jax.block_until_ready(chunk.run(state, None, jax.numpy.int32(count)))
        seconds += time.perf_counter() - start
        updates += count
        success = evaluate(state, None, evaluation_keys)["success_rate"].item()
    sizes = {"environments": run.ppo.environments, "rollout": run.ppo.rollout}
    steps = updates * run.ppo.environments * run.ppo.rollout
    reached = "reached" if success >= GOAL else "NOT reached"
    yield Row(
        name="commformer/time_to_99",
        sizes={**sizes, "epochs": run.ppo.epochs, "cores": settings.cores},
        work=steps,
        unit="environment steps/s",
        ours=Timing(seconds, seconds, seconds, chunk.compile_seconds),
        note=f"{reached}: success {success:.1%} after {steps} environment steps, {seconds:.1f} s",
    )
