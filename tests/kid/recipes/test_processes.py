"""A distillation in two processes is that of one, what its student wrote included."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import yaml

import jaxmethods
from jaxmethods.records.run_folder import RunFolder
from tests.devices.test_processes import ends, start_two
from tests.devices.test_stages_on_processes import assert_same_metrics
from tests.kid.recipes.tiny import DISTILLM, values
from tests.training import distributed_toy


@pytest.mark.slow
def test_two_processes_stopped_and_resumed_give_the_students_of_one(tmp_path):
    given = values(
        students=["kid", DISTILLM],
        teacher={"cache": "float32"},
        training={"log_every": 1, "evaluate_every": 2, "checkpoint_every": 1},
        evaluation={"exposure": 2},
    )
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(given))
    one, two = tmp_path / "one", tmp_path / "two"
    assert distributed_toy.main(["run", str(config), "--out", str(one), "--quiet"]) == 0
    stopped = ends(start_two(config, two, second={distributed_toy.STOP_AT: "2"}), seconds=300)
    assert [code for code, _, _ in stopped] == [143, 143], stopped
    resumed = ends(start_two(config, two, "--resume"), seconds=300)
    assert [code for code, _, _ in resumed] == [0, 0], resumed
    assert_same_metrics(RunFolder(one), RunFolder(two), rtol=2e-3, atol=2e-4)
    left, right = (jaxmethods.load_run(folder) for folder in (one, two))
    for a, b in zip(*(jax.tree.leaves(run.results) for run in (left, right)), strict=True):
        a = np.asarray(a)
        if a.dtype.kind == "f":
            # An excess is the difference of two sums, and is rounded as the largest of them are.
            atol = max(2e-4, 5e-4 * np.max(np.abs(a), initial=0))
            np.testing.assert_allclose(np.asarray(b), a, rtol=2e-3, atol=atol)
    for name in ("answers.jsonl", "table.md"):
        assert (two / name).is_file()
    told = [json.loads((run / "result.json").read_text())["headline"] for run in (one, two)]
    assert told[0] == told[1]
