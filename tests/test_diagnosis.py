"""Reports on finished runs: any method that trains a model, without one knowing the other."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

import jaxmethods
from jaxmethods import cli, registry
from jaxmethods.config import TrainingRunConfig
from jaxmethods.interpret.dynamics.watching import watched
from jaxmethods.interpret.measures import MEASURES
from jaxmethods.stages import Train
from tests.diagnosis import check_diagnosable
from tests.objectives import check_objectives
from tests.same_numbers import check_same_numbers

REPORT = Path(__file__).parents[1] / "configs" / "interpret" / "report.yaml"
TEAM = {
    "method": "commformer",
    "environment": {"name": "predator_prey", "n_predators": 2, "dim": 3, "vision": 1},
    "environment_steps": 80,
    "network": {"embed": 8},
    "ppo": {"environments": 8, "rollout": 5, "epochs": 2},
    "evaluation": {"episodes": 4, "max_steps": 6},
    "training": {"log_every": 1, "evaluate_every": 2, "checkpoint_every": 2},
}
WORLD = {
    "method": "misconceptions",
    "world": {"entities": 8, "relations": 2, "values": 4},
    "learner": {"layers": 1, "width": 16, "mlp_width": 16, "heads": 2, "kv_heads": 1, "steps": 6},
    "selection": {"samples": 4, "q": 0.5},
    "seeds": 2,
    "monitor": 2,
    "training": {"log_every": 3, "evaluate_every": 6, "checkpoint_every": 6},
}


def train(folder, values):
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    assert cli.main(["run", str(config), "--out", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    return train(tmp_path_factory.mktemp("team"), TEAM)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return train(tmp_path_factory.mktemp("world"), WORLD)


def report(run, out, *more):
    where = ["--model", str(run), "--out", str(out), "--examples", "8", "--quiet"]
    return cli.main(["run", str(REPORT), *where, *more])


TINY_RUNS = {
    "commformer": "test_diagnosis.py",
    "interpret_digits": "interpret/recipes/test_recipes.py",
    "interpret_grokking": "interpret/recipes/test_grokking.py",
    "kid": "kid/recipes/test_distill.py",
    "lsm": "lsm/recipes/test_speech_text.py",
    "lsm_recordings": "lsm/recipes/test_recordings.py",
    "merging": "merging/recipes/test_comparison.py",
    "misconceptions": "test_diagnosis.py",
    "obd": "obd/recipes/test_comparison.py",
    "rsfm": "rsfm/recipes/test_compare.py",
    "speech_probe": "lsm/recipes/probe/test_probe.py",
    "vqcd": "vqcd/recipes/test_continual.py",
}
"""Method that trains -> the tests that have a tiny run of it, and diagnose it."""


def test_every_method_that_trains_something_is_diagnosed_by_a_test():
    found = {name: registry.find(name, "test") for name in registry.METHODS}
    trained = {
        name
        for name, own in found.items()
        if issubclass(own.config, TrainingRunConfig)
        and own.config.__module__.startswith("jaxmethods.")  # tests have methods of their own
    }
    assert trained == set(TINY_RUNS)
    for file in TINY_RUNS.values():
        assert "    check_diagnosable(" in (Path(__file__).parent / file).read_text(), file


@pytest.mark.slow
def test_a_team_is_diagnosed_by_what_it_does(team):
    check_diagnosable(jaxmethods.load_run(team))
    # Epochs move the parameters before the step's loss is taken in the mean.
    check_objectives(jaxmethods.load_run(team), slack=0.1)
    found = jaxmethods.load_run(team).diagnosable()
    inputs, actions = found.data
    outputs = jax.eval_shape(found.apply, found.params, inputs)
    assert outputs.shape[:-1] == actions.shape
    # The monitor's step is traced: it compiles far longer than it runs.
    (stage,) = jaxmethods.load_run(team).recipe.stages
    assert isinstance(stage, Train)
    method = watched(stage.method, 1)
    state = jax.eval_shape(method.init, jax.random.key(0), None)
    assert jax.eval_shape(method.step, state, None)[1]["monitor_sharpness"].shape == ()


@pytest.mark.slow
def test_a_monitor_shows_what_a_world_goes_down_on(world):
    check_diagnosable(jaxmethods.load_run(world))
    check_objectives(jaxmethods.load_run(world))


@pytest.mark.slow
def test_a_finished_run_is_reported_on(tmp_path, world):
    run = world
    assert report(run, tmp_path / "out") == 0
    (rows,) = json.loads((tmp_path / "out" / "diagnostics.json").read_text())
    assert {"train_loss", "accuracy", "trace", "ggn_trace", "calibration"} <= set(rows)
    assert rows["train_loss"]["value"] > 0
    assert rows["ggn_trace"]["value"] > 0
    figures = {path.stem for path in (tmp_path / "out" / "figures").iterdir()}
    assert {"margins", "reliability", "loss_landscape", "tangent_kernel"} <= figures
    assert str(run) in (tmp_path / "out" / "table.md").read_text()
    check_same_numbers(tmp_path / "out")
    check_same_numbers(run)


@pytest.mark.slow
def test_a_run_says_what_it_trained_and_a_seed_is_chosen(world, tmp_path, capsys):
    found = jaxmethods.load_run(world).diagnosable(1)
    ids, targets = found.data
    assert jax.eval_shape(found.apply, found.params, ids).shape[:-1] == targets.shape
    rows = [json.loads(line) for line in (world / "metrics.jsonl").read_text().splitlines()]
    assert any("train/monitor_sharpness" in row for row in rows)
    assert report(world, tmp_path / "out", "--of_seed", "2") == 2
    assert "seed: expected 0 to 1, got 2" in capsys.readouterr().err
    data = tmp_path / "data.npz"
    np.savez(data, inputs=np.asarray(ids)[:, :-1], targets=targets)
    assert report(world, tmp_path / "out", "--data", str(data)) == 2
    error = capsys.readouterr().err
    assert f"expected inputs int32[N, {ids.shape[1]}], targets int32[N, {ids.shape[1]}]" in error
    assert not (tmp_path / "out").exists()


def test_what_trains_no_model_is_refused(tmp_path, capsys):
    assert report(tmp_path / "absent", tmp_path / "out") == 2
    assert "absent" in capsys.readouterr().err
    assert registry.METHODS["interpret"].module == "jaxmethods.diagnosis.recipe"
    assert "few outputs" in {own.needs for own in MEASURES.values()}
