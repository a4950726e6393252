"""A saved set at work: students as it was made for, and of every other kind."""

from __future__ import annotations

import json
import re

import jax
import numpy as np
import pytest
import yaml

from jaxmethods.cli import main
from jaxmethods.numerics.keys import named
from jaxmethods.numerics.statistics import summarize
from jaxmethods.obd import evaluate
from jaxmethods.obd.recipes import distilled_files as distilled
from jaxmethods.obd.tables import TABLES
from jaxmethods.obd.types import SynSet
from jaxmethods.offline_rl.mujoco_returns import evaluate_returns
from jaxmethods.offline_rl.scores import normalized_score
from jaxmethods.offline_rl.types import Norm
from tests.obd import small

CELL = r"-?\d+\.\d ± \d+\.\d"


def saved_set(folder, states, actions, pairs=5):
    keys = jax.random.split(jax.random.key(0))
    syn = SynSet(
        jax.random.normal(keys[0], (pairs, states)), jax.random.uniform(keys[1], (pairs, actions))
    )
    norm = Norm(np.zeros(states, np.float32), np.ones(states, np.float32))
    distilled.save(folder / "syn.npz", syn, norm, small.CONFIG, seed=0, outer_steps=0)
    return syn, norm


def config(folder, environment, students=2, episodes=1, **changes):
    values = {
        "method": "obd_tables",
        "path": str(folder / "syn.npz"),
        "evaluation": {
            "environment": environment,
            "students": students,
            "episodes": episodes,
        },
    }
    file = folder / "tables.yaml"
    file.write_text(yaml.safe_dump(values | changes))
    return ["run", str(file), "--out", str(folder / "run"), "--quiet"]


def metrics(folder):
    content = json.loads((folder / "run" / "result.json").read_text())
    found = content["stages"]["tables"]["metrics"]
    return {name: numbers["mean"] for name, numbers in found.items()}


def table(folder):
    return (folder / "run" / "table.md").read_text().splitlines()


def test_a_saved_set_can_be_put_to_work(tmp_path, capsys):
    """Students of five random pairs play the pendulum: somewhere between nothing and an expert."""
    saved_set(tmp_path, 3, 1)
    command = config(tmp_path, "pendulum", students=3, episodes=2, tables=["own"])
    for environment, message in (
        ("pendulm", "did you mean 'pendulum'"),
        ("hopper", "hopper has 11 observations and 3 actions, got data with 3"),
        ("null", "evaluation.environment"),
    ):
        if environment == "hopper":
            pytest.importorskip("mujoco")
        assert main([*command, "--evaluation.environment", environment]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    assert main(command) == 0
    head, _, row = table(tmp_path)
    assert head == "| students | normalized score |"
    assert re.fullmatch(rf"\| as distilled \| {CELL} \|", row)
    found = metrics(tmp_path)
    assert found["return"] == pytest.approx(124.7 + found["score"] * (190.8 - 124.7) / 100)
    assert f"{found['score']:.1f} ± {found['error']:.1f}" in row
    assert "as distilled" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow  # brax compiles for ten seconds
def test_a_saved_set_can_be_put_to_work_in_brax(tmp_path, capsys):
    """Balancing is paid 1 a step: returns are positive and have no normalization."""
    pytest.importorskip("brax")
    saved_set(tmp_path, 4, 1)
    command = config(tmp_path, "brax:inverted_pendulum", tables=["own"])
    assert main([*command, "--evaluation.environment", "brax:inverted_pendulu"]) == 2
    assert "inverted_pendulum" in capsys.readouterr().err
    assert main(command) == 0
    head, _, row = table(tmp_path)
    assert head == "| students | return |"
    assert re.fullmatch(rf"\| as distilled \| {CELL} \|", row)
    found = metrics(tmp_path)
    assert found["score"] >= 1.0
    assert "return" not in found


@pytest.fixture(scope="module")
def crossed(tmp_path_factory):
    """A cross table in the pendulum."""
    folder = tmp_path_factory.mktemp("crossed")
    saved_set(folder, 3, 1, pairs=4)
    command = config(folder, "pendulum", tables=["optimizers"])
    assert main(command) == 0
    return folder, command


TITLES = {
    "optimizers": [f"optimizer {name}" for name in ("sgd", "sgdm", "adam", "adamw")],
    "architectures": [
        *(f"{layers} linear layers" for layers in (2, 3, 4, 5, 6)),
        "4 linear layers, residual",
    ],
}


def check_table(folder, name):
    """A row for each kind of student, in the paper's order, with the numbers of the record."""
    lines = table(folder)
    assert lines[0] == "| students | normalized score |"
    found = metrics(folder)
    scores = [n for n in found if n.startswith(f"score_{name}_")]
    assert len(scores) == len(TITLES[name]) == len(lines) - 2
    for title, score, line in zip(TITLES[name], scores, lines[2:], strict=True):
        error = found[score.replace("score", "error")]
        assert line == f"| {title} | {found[score]:.1f} ± {error:.1f} |"


@pytest.mark.slow
def test_a_cross_table_has_a_row_for_each_kind_of_student(crossed):
    check_table(crossed[0], "optimizers")


@pytest.mark.slow
def test_rows_that_are_there_do_not_play_again(crossed, monkeypatch):
    folder, command = crossed
    monkeypatch.setattr(evaluate, "_control_returns", lambda *a: pytest.fail("played again"))
    before = table(folder)
    assert main([*command, "--resume"]) == 0
    assert table(folder) == before


@pytest.mark.slow
def test_a_cross_table_in_mujoco_is_that_of_the_first_episodes(tmp_path, monkeypatch):
    pytest.importorskip("mujoco")
    pytest.importorskip("gymnasium")
    syn, norm = saved_set(tmp_path, 11, 3, pairs=4)
    name, trained = "architectures", []
    train = TABLES[name]

    def kept(key, given, students):
        """Students of the run, which are not trained again to be played again."""
        assert key == named(jax.random.key(0), "table")
        jax.tree.map(np.testing.assert_array_equal, given, syn)
        trained.extend(train(key, given, students))
        return iter(trained)

    monkeypatch.setitem(TABLES, name, kept)
    assert main(config(tmp_path, "hopper", tables=[name])) == 0
    check_table(tmp_path, name)
    found = metrics(tmp_path)
    assert len(trained) == len(TITLES[name])
    for row, params, student in trained:
        assert len(jax.tree.leaves(params)[0]) == 2
        returns = evaluate_returns("hopper", params, norm, 1, residual=student.residual)
        expected = summarize(normalized_score("hopper", returns)).mean
        assert found[f"score_{name}_{row}"] == pytest.approx(expected, rel=1e-5)


def test_a_card_that_does_not_say_how_the_set_was_made_is_refused(tmp_path, capsys):
    saved_set(tmp_path, 3, 1)
    card = tmp_path / "syn.json"
    content = json.loads(card.read_text())
    for wrong, message in (
        (None, "distillation of its card"),
        ({"n_syn": 0}, "distillation.n_syn"),
    ):
        card.write_text(json.dumps(content | {"distillation": wrong}))
        assert main(config(tmp_path, "pendulum")) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    card.write_text(json.dumps(content))
    assert main(config(tmp_path, "pendulum", tables=["own", "own"])) == 2
    assert "tables: expected different ones" in capsys.readouterr().err
