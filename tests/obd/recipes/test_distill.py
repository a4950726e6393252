"""From a config file to distilled sets on disk."""

from __future__ import annotations

import json
import sys

import jax
import numpy as np
import pytest
import yaml

from jaxmethods.cli import main
from jaxmethods.obd.config import DistillRun as Run
from jaxmethods.obd.recipes import distill
from jaxmethods.obd.recipes import distilled_files as distilled
from jaxmethods.obd.recipes.inputs import Inputs
from jaxmethods.obd.recipes.teacher_files import save_teacher
from jaxmethods.offline_rl.dataset import load_offline
from jaxmethods.stages import Train
from tests.obd import small

CONFIG = {
    "method": "obd",
    "seed": 1,
    "seeds": 2,
    "distillation": small.CONFIG.model_dump(),
    "outer_steps": 6,
    "evaluation": {"students": 2},
    "training": {"log_every": 2, "evaluate_every": 4, "checkpoint_every": 4},
}


@pytest.fixture
def files(tmp_path):
    """A config whose dataset and teacher lie beside it."""
    source = small.source()
    length = small.L
    np.savez(
        tmp_path / "data.npz",
        observations=3.0 * np.asarray(source.data.states) + 1.0,
        actions=source.data.actions,
        rewards=np.zeros(length, np.float32),
        terminals=np.zeros(length, bool),
        timeouts=np.arange(length) % 10 == 9,
    )
    save_teacher(tmp_path / "teacher.npz", source.teacher)
    places = {name: {"path": str(tmp_path / f"{name}.npz")} for name in ("data", "teacher")}
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(CONFIG | places))
    return config


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in lines]


@pytest.mark.slow
def test_training_leaves_sets_that_load_and_name_their_source(files, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["run", str(files), "--out", str(out), "--quiet"]) == 0
    data, norm = load_offline(tmp_path / "data.npz")
    for seed in (1, 2):
        found = distilled.load(out / f"syn-seed{seed}.npz", source=tmp_path / "data.npz")
        assert found.syn.states.shape == (small.N, data.states.shape[1])
        np.testing.assert_array_equal(found.norm.mean, norm.mean)
        assert (found.card["seed"], found.card["outer_steps"]) == (seed, 6)
        assert found.card["teacher"]["file"] == "teacher.npz"
    assert (out / "figures" / "synthetic_set.png").stat().st_size > 1000
    last = rows(out)[-1]
    assert len(last["evaluate/offline_loss"]) == len(last["evaluate/random_offline_loss"]) == 2
    capsys.readouterr()
    assert main(["evaluate", str(out)]) == 0
    assert "offline_loss" in capsys.readouterr().out


@pytest.mark.parametrize("learn", ["iql", "calql"])
def test_equal_configs_share_their_methods_and_with_them_their_programs(files, learn):
    values = yaml.safe_load(files.read_text()) | {
        "teacher": {"learn": learn, "steps": 2},
        "density": {"tau": 0.5, "flow": {"steps": 2}},
        "comparison": {"cloning_steps": 2},
    }

    def methods(**changes):
        recipe = distill.recipe(Run.model_validate(values | changes))
        return {stage.name: stage.method for stage in recipe.stages if isinstance(stage, Train)}

    first, again, longer = methods(), methods(seed=5), methods(teacher={"learn": learn, "steps": 9})
    assert set(first) == {"offline_rl", "density", "distillation", "cloning", "comparison"}
    for name, method in first.items():
        assert again[name] is method
        assert (longer[name] is method) == (name != "offline_rl" or learn == "calql")


def test_the_initial_students_of_a_seed_are_those_of_that_seed_alone(files):
    values = yaml.safe_load(files.read_text())
    values["distillation"]["init_pool"] = 2

    def pool(**seeds):
        run = Run.model_validate(values | seeds)
        return jax.tree.leaves(distill.source(run, Inputs(run), {}).init_pool)

    both, second = pool(seed=1, seeds=2), pool(seed=2, seeds=1)
    for of_both, alone in zip(both, second, strict=True):
        np.testing.assert_array_equal(of_both[1], alone[0])
    assert not np.array_equal(both[0][0], both[0][1])


@pytest.mark.slow
def test_a_seed_of_several_is_that_seed_alone(files, tmp_path):
    assert main(["run", str(files), "--out", str(tmp_path / "two"), "--quiet"]) == 0
    alone = ["run", str(files), "--seed", "2", "--seeds", "1", "--out", str(tmp_path / "one")]
    assert main([*alone, "--quiet"]) == 0
    one = distilled.load(tmp_path / "one" / "syn.npz").syn
    two = distilled.load(tmp_path / "two" / "syn-seed2.npz").syn
    np.testing.assert_allclose(one.states, two.states, rtol=1e-4, atol=1e-5)


def test_files_that_cannot_be_used_are_refused_before_anything_is_written(files, tmp_path, capsys):
    out = tmp_path / "run"
    for change, reason in [
        (["--data.path", str(tmp_path / "none.npz")], "no such file"),
        (["--distillation.batch", "500"], "distillation.batch: expected at most the 45 rows"),
        (["--teacher.path", "null"], "teacher: expected a path, or `learn`"),
        (["--evaluation.environment", "hoper"], "did you mean 'hopper'"),
        (["--evaluation.environment", "hopper"], "hopper has 11 observations and 3 actions, got"),
        (["--distillation.mode", "mixd"], "distillation.mode"),
    ]:
        assert main(["run", str(files), "--out", str(out), *change]) == 2
        assert reason in capsys.readouterr().err
        assert not out.exists()


def test_a_missing_simulator_is_refused_before_anything_is_written(
    files, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    out = tmp_path / "run"
    arguments = ["run", str(files), "--out", str(out), "--evaluation.environment", "hopper"]
    assert main(arguments) == 2
    assert capsys.readouterr().err.strip().endswith("pip install 'jaxmethods[rl]'")
    assert not out.exists()


def test_generated_data_that_does_not_fit_is_refused_before_anything_is_written(tmp_path, capsys):
    config = tmp_path / "generated.yaml"
    config.write_text(
        "method: obd\ndata: {generate: pendulum, episodes: 1}\nteacher: {learn: iql}\n"
    )
    for change, reason in [
        (["--distillation.n_syn", "100000"], "distillation.n_syn: expected at most the"),
        (["--evaluation.environment", "hopper"], "got data with 3 and 1"),
    ]:
        assert main(["run", str(config), "--out", str(tmp_path / "run"), *change]) == 2
        assert reason in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
