"""Every baseline goes through the same recipe, two tiny tasks each."""

from __future__ import annotations

import numpy as np
import pytest

import jaxmethods
from jaxmethods.vqcd.recipes.summary import SUMMARY
from tests.vqcd.recipes.tiny import values

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
