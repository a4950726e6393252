"""From a dataset alone to a comparison: the pipeline of the quickstart at tiny sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jaxmethods import cli
from jaxmethods.config import read_yaml
from jaxmethods.training import registry
from jaxmethods.training.run_folder import RunFolder

TINY = """
method: obd
seeds: 2
data: {generate: pendulum, episodes: 1}
teacher: {learn: iql, steps: 4, iql: {hidden: 8, n_layers: 2, batch: 8}}
distillation:
  n_syn: 5
  batch: 16
  inner_steps: 3
  student: {hidden: 8, n_layers: 3}
outer_steps: 4
evaluation: {environment: pendulum, students: 3, episodes: 2}
comparison: {cloning_steps: 4, cloning: {batch: 8}}
training: {log_every: 4, evaluate_every: 4, checkpoint_every: 4}
"""
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.yaml").write_text(TINY)
    out = folder / "run"
    assert cli.main(["train", str(folder / "tiny.yaml"), "--out", str(out), "--quiet"]) == 0
    return RunFolder(out)


def test_the_stages_run_in_order(finished):
    stages = [row["stage"] for row in finished.read_metrics()]
    assert list(dict.fromkeys(stages)) == ["offline_rl", "distillation", "cloning", "comparison"]


def test_everybody_competes_in_every_seed(finished):
    last = finished.read_metrics()[-1]
    names = ("distilled", "random", "best_episodes", "clusters", "teacher", "cloning_all_data")
    for name in names:
        scores = last[f"evaluate/score_{name}"]
        assert len(scores) == 2
        assert np.all(np.isfinite(scores))
    assert {f"evaluate/error_{name}" for name in names[:4]} <= set(last)


def test_each_seed_has_a_teacher_of_its_own(finished):
    scores = finished.read_metrics()[-1]["evaluate/score_teacher"]
    assert scores[0] != scores[1]


def test_the_report_shows_the_scores(finished):
    assert (finished.figures / "scores.png").is_file()
    assert "scores" in finished.report.read_text()


def test_the_quickstart_is_a_valid_config_of_the_same_stages():
    path = ROOT / "configs" / "obd" / "quickstart.yaml"
    assert path.read_text().startswith("#")
    _, stages = registry.parse(read_yaml(path), str(path))
    names = [stage.name for stage in stages]
    assert names == ["offline_rl", "distillation", "cloning", "comparison"]
