"""Every kind of stage over two processes: it trains, computes, is judged on the host, and ends with
the results of one process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

import jaxmethods
from jaxmethods.data.images import digit_tasks
from jaxmethods.records.run_folder import RunFolder
from tests.devices.test_processes import ends, start_two
from tests.merging.recipes import test_comparison
from tests.rsfm.recipes import test_compare
from tests.training import distributed_toy
from tests.training.test_loop import rows_without_times

pytestmark = pytest.mark.slow
STAGES = """
method: stages
training: {log_every: 2, evaluate_every: 4, checkpoint_every: 4}
"""


def run_both(config: Path, folder: Path) -> tuple[RunFolder, RunFolder]:
    """The same config by one process, and by two on a device each."""
    one, two = folder / "one", folder / "two"
    assert distributed_toy.main(["run", str(config), "--out", str(one), "--quiet"]) == 0
    ended = ends(start_two(config, two), seconds=600)
    assert [code for code, _, _ in ended] == [0, 0], ended
    return RunFolder(one), RunFolder(two)


def assert_same_metrics(one: RunFolder, two: RunFolder, **tolerance: float) -> None:
    for left, right in zip(*map(rows_without_times, (one, two)), strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            if isinstance(value, float):
                np.testing.assert_allclose(right[name], value, err_msg=name, **tolerance)
            else:
                assert right[name] == value, name


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    (folder / "stages.yaml").write_text(STAGES)
    return run_both(folder / "stages.yaml", folder)


def test_training_computing_and_judging_on_the_host_are_those_of_one_process(stages):
    assert_same_metrics(*stages, rtol=1e-4, atol=1e-5)
    rows = rows_without_times(stages[1])
    assert [row["evaluate/score"] for row in rows if "evaluate/score" in row]
    assert [row["evaluate/largest"] for row in rows if row["stage"] == "products"]


def test_parts_and_results_are_kept_once_and_whole(stages):
    for index in range(2):
        kept = [np.load(run.parts / "products" / f"image-{index}.npz") for run in stages]
        assert kept[1]["products"].shape == (4, 3)
        np.testing.assert_allclose(kept[1]["products"], kept[0]["products"], rtol=1e-4)
        assert kept[1]["host"] == index


def test_a_run_of_two_processes_is_found_again_by_one(stages):
    found = jaxmethods.load_run(stages[1].path).results
    assert found.keys() == {"first", "products", "second"}
    assert found["second"].weights.shape == (1, 4, 3)


def test_merging_and_its_comparison_are_those_of_one_process(tmp_path):
    pytest.importorskip("sklearn")
    for task in digit_tasks(test_comparison.TASKS):
        test_comparison.save(task, tmp_path)
    config = test_comparison.CONFIG | {"data": {"path": str(tmp_path)}, "seeds": 1}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    runs = run_both(tmp_path / "tiny.yaml", tmp_path)
    assert_same_metrics(*runs, rtol=1e-3, atol=1e-4)
    one, two = (json.loads((run.path / "table.json").read_text()) for run in runs)
    assert one["accuracy"].keys() == two["accuracy"].keys()
    for name, values in one["distance"].items():
        np.testing.assert_allclose(two["distance"][name], values, rtol=1e-3, atol=1e-4)


def test_pretraining_and_what_features_are_worth_are_those_of_one_process(tmp_path):
    """Losses and norms of gradients of every step, and the predictions that follow."""
    less = {**test_compare.SMALL["evaluation"], "segmentation_steps": 0}
    changes = {"evaluation": less, "finetune": {}}
    often = {"log_every": 1, "evaluate_every": 3, "checkpoint_every": 3}
    config = {"method": "rsfm", **test_compare.SMALL, **changes, "training": often}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    one, two = run_both(tmp_path / "tiny.yaml", tmp_path)
    assert_same_metrics(one, two, rtol=1e-5, atol=1e-6)
    rows = [row for row in rows_without_times(two) if row["stage"] == "pretrain"]
    assert len([row for row in rows if "train/gradient_norm" in row]) == 3
