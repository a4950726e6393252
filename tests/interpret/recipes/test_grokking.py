"""The drawing of a network that groks: what moves, and when."""

from __future__ import annotations

import numpy as np
import pytest

import jaxmethods
from jaxmethods.interpret.config import GrokkingRun
from jaxmethods.interpret.recipes import grokking
from tests.diagnosis import check_diagnosable
from tests.objectives import check_objectives


def curves(**changes):
    step = np.arange(10.0, 110, 10)
    late = (step >= 80).astype(float)
    return {"step": step, "train_accuracy": (step >= 20).astype(float), "test_accuracy": late} | {
        name: own(step) for name, own in changes.items()
    }


def test_measures_are_ordered_by_when_they_have_gone_half_of_their_way():
    found = curves(monitor_weight_norm=lambda s: 5 - 3 * (s >= 50), rank=lambda s: 0 * s)
    known, moved = grokking.order_of(found)
    assert known == 20
    # What never changes has moved never.
    assert moved == [("monitor_weight_norm", 50.0), ("test_accuracy", 80.0)]


def test_pairs_that_are_never_known_have_no_order(tmp_path):
    found = curves() | {"train_accuracy": np.zeros(10)}
    assert grokking.order_of(found) == (None, [])
    grokking.write(found, tmp_path)
    assert "never known" in (tmp_path / "table.md").read_text()
    assert not (tmp_path / "figures").exists()


def test_rows_become_curves_of_the_first_seed():
    rows = [
        {"stage": "learn", "step": 10, "train/loss": 1.0, "train/train_accuracy": [0.5, 0.1]},
        {"stage": "other", "step": 20},
    ]
    found = grokking.read_curves(rows)
    assert found["train_accuracy"] == [0.5]
    assert "rank" not in found


def test_all_pairs_are_split_once():
    pairs = grokking.all_pairs(GrokkingRun(method="interpret_grokking", prime=5, share=0.4))
    both = np.concatenate([pairs.train[0], pairs.test[0]])
    assert len(pairs.train[0]) == 10
    assert len({tuple(pair) for pair in both.tolist()}) == 25
    np.testing.assert_array_equal(pairs.test[1], pairs.test[0].sum(1) % 5)


@pytest.mark.slow
def test_a_small_run_can_be_diagnosed(tmp_path):
    run = {"method": "interpret_grokking", "prime": 5, "width": 8, "steps": 4}
    finished = jaxmethods.run(run, tmp_path / "run")
    check_diagnosable(finished)
    check_objectives(finished)
