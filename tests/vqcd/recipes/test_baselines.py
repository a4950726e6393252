"""Every baseline goes through the same recipe, two tiny tasks each."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmethods
from jaxmethods import vqcd
from jaxmethods.vqcd import baselines
from jaxmethods.vqcd.config import Run
from jaxmethods.vqcd.recipes.between import _imagined
from jaxmethods.vqcd.recipes.learners import Learner
from jaxmethods.vqcd.recipes.report import training_seconds
from jaxmethods.vqcd.recipes.summary import SUMMARY
from jaxmethods.vqcd.recipes.tasks import Tasks
from tests.vqcd.recipes.tiny import values
from tests.vqcd.toy import PERCEPTRON, changed, codes_data

KINDS = (
    *("cod", "cod_rcr", "cod_lora", "rehearsal", "multitask"),
    *("ewc", "l2", "mas", "packnet", "generative_replay"),
    *("single", "single_quarter"),
)


@pytest.mark.slow
def test_baselines_run_and_are_judged(tmp_path):
    network = values()["planner"]["network"] | {"dim": 16}
    task = values()["tasks"][0]
    changes = {
        "tasks": [task, task | {"name": "again"}],  # of one size, so that both share programs
        "learners": [{"kind": kind} for kind in KINDS],
        "planner": values()["planner"] | {"network": network},
        "curve": 1,
    }
    run = jaxmethods.run(values(**changes), tmp_path / "run")
    summary = run.results[SUMMARY]
    for kind in KINDS:
        assert np.isfinite(summary[f"{kind}_matrix"][:, :, -1]).all()
        if f"{kind}_plans_kept" in summary:
            assert bool(summary[f"{kind}_plans_kept"].all()) == (kind in ("packnet", "cod_lora"))


def test_training_that_is_pruned_in_between_is_timed_as_a_whole(tmp_path):
    run = Run.model_validate(values(learners=["packnet", "finetune"]))
    rows = [
        {"stage": "packnet_pendulum", "step": 4, "steps_per_second": 2.0},
        {"stage": "packnet_pendulum_kept", "step": 2, "steps_per_second": 2.0},
        {"stage": "finetune_pendulum", "step": 4, "steps_per_second": 2.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    learners = [Learner(run, config) for config in run.learners]
    seconds = training_seconds(tmp_path, Tasks(run), learners)
    assert seconds == {"packnet": 3.0, "finetune": 2.0}


def test_what_is_imagined_of_a_task_is_planned_for_its_own_number():
    config = baselines.generative_replay(changed(PERCEPTRON, tasks=2))
    seeds = jax.random.split(jax.random.key(0), 1)
    banks = jax.vmap(vqcd.initial_bank, (0, None))(seeds, config)
    data, rows = codes_data(1), ("states", "actions", "state_table", "action_table")
    data = data._replace(**{name: getattr(data, name)[None] for name in rows})
    bounds = jnp.full((1, 6), -1.0), jnp.full((1, 6), 1.0)
    first, second = (
        _imagined(config, 3, banks, data, bounds, jnp.int32(0), jnp.int32(number), seeds)
        for number in range(2)
    )
    assert (first.task == 0).all()
    assert (second.task == 1).all()
    assert not np.array_equal(first.states, second.states)
