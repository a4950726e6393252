"""From a dataset alone to a comparison: the pipeline of the quickstart at tiny sizes."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import jaxmethods
from jaxmethods import cli, registry
from jaxmethods.config import MeshConfig, read_yaml
from jaxmethods.devices.sharding import Placer, make_mesh
from jaxmethods.numerics.statistics import Summary, summarize
from jaxmethods.obd import evaluate
from jaxmethods.obd.recipes import comparison, distill
from jaxmethods.obd.recipes.inputs import Inputs
from jaxmethods.obd.recipes.teacher_files import save_teacher
from jaxmethods.offline_rl import policies
from jaxmethods.offline_rl.types import Norm, Teacher
from jaxmethods.records.run_folder import RunFolder
from jaxmethods.reports import result
from tests.diagnosis import check_diagnosable
from tests.objectives import check_objectives
from tests.same_numbers import check_same_numbers

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
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


NAMES = ("distilled", "random", "best_episodes", "clusters", "teacher", "cloning_all_data")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.yaml").write_text(TINY)
    out = folder / "run"
    drawn = {}
    with pytest.MonkeyPatch.context() as patch:
        draw = comparison.draw_scores
        patch.setattr(comparison, "draw_scores", lambda *a: (drawn.update(a[0]), draw(*a)))
        assert cli.main(["run", str(folder / "tiny.yaml"), "--out", str(out), "--quiet"]) == 0
    return RunFolder(out), drawn


def last_row(finished):
    return finished[0].read_metrics()[-1]


def test_the_stages_run_in_order(finished):
    stages = [row["stage"] for row in finished[0].read_metrics()]
    expected = ["offline_rl", "distillation", "cloning", "comparison", "scores"]
    assert list(dict.fromkeys(stages)) == expected


def test_a_student_can_be_diagnosed(finished):
    check_diagnosable(jaxmethods.load_run(finished[0].path))


@pytest.mark.slow
def test_a_monitor_shows_what_students_go_down_on(finished):
    def of_all(metrics):
        return sum(metrics[name] for name in metrics) / len(metrics)

    def of_networks(metrics):
        return sum(metrics[f"{name}_loss"] for name in ("value", "critic", "policy"))

    # Teachers' targets are constants; a distillation's loss jumps where a student's unit wakes.
    check_objectives(
        jaxmethods.load_run(finished[0].path),
        {"comparison": of_all, "offline_rl": of_networks},
        not_a_derivative=("offline_rl", "distillation"),
    )


def test_everybody_competes_in_every_seed(finished):
    last = last_row(finished)
    for name in NAMES:
        scores = last[f"evaluate/score_{name}"]
        assert len(scores) == 2
        assert np.all(np.isfinite(scores))
    errors = {name for name in last if name.endswith("_error")}
    assert errors == {f"evaluate/score_{name}_error" for name in NAMES[:4]}


def test_each_seed_has_a_teacher_of_its_own(finished):
    scores = last_row(finished)["evaluate/score_teacher"]
    assert scores[0] != scores[1]


def test_scores_along_the_way_are_points_of_curves_and_not_of_the_result(finished):
    rows = finished[0].read_metrics()
    for stage in ("offline_rl", "distillation", "cloning"):
        along = [
            row["curve/score"] for row in rows if row["stage"] == stage and "curve/score" in row
        ]
        assert np.shape(along[-1]) == (2,)
        assert np.isfinite(along[-1]).all()
    judged = result.last_judged(rows)
    assert list(judged) == ["distillation", "scores"]
    assert set(judged["distillation"].metrics) == {"offline_loss", "random_offline_loss"}


def test_a_score_is_one_number_wherever_it_is_shown(finished):
    """In the record, the kept plays, the bars, result.json and the report."""
    folder, drawn = finished
    last = last_row(finished)
    content = json.loads(folder.result.read_text())
    assert content["headline"] == [
        f"scores/score_{name}" for name in ("distilled", "random", "teacher")
    ]
    for name in NAMES:
        with np.load(folder.parts / "scores" / f"{name}.npz") as kept:
            plays = kept["scores"]
        assert plays.shape == (2, 3 if name in NAMES[:4] else 1, 2)
        numbers = content["stages"]["scores"]["metrics"][f"score_{name}"]
        assert numbers["values"] == last[f"evaluate/score_{name}"]
        np.testing.assert_allclose(numbers["values"], plays.mean((1, 2)), rtol=1e-6)
        np.testing.assert_allclose(drawn[name], (numbers["mean"], numbers["error"]), rtol=1e-6)
        shown = Summary(numbers["mean"], numbers["error"])
        assert str(shown) in folder.report.read_text()


def test_console_report_and_result_carry_the_same_numbers(finished):
    check_same_numbers(finished[0].path)


def test_a_finished_run_plays_nothing_again(finished, monkeypatch):
    folder, _ = finished
    before = folder.read_metrics()
    monkeypatch.setattr(evaluate, "_control_returns", lambda *a: pytest.fail("played again"))
    config = folder.path.parent / "tiny.yaml"
    assert cli.main(["run", str(config), "--out", str(folder.path), "--resume", "--quiet"]) == 0
    assert folder.read_metrics() == before


def test_the_report_shows_the_scores(finished):
    assert (finished[0].figures / "scores.png").is_file()
    assert "scores" in finished[0].report.read_text()


def recipe(**changes):
    values = yaml.safe_load(TINY) | changes
    return registry.parse(values, "tiny.yaml")[1]


def test_stages_and_headline_are_those_that_are_asked_for():
    whole = recipe(density={"tau": 0.5})
    names = ["offline_rl", "density", "distillation", "cloning", "comparison", "scores"]
    assert [stage.name for stage in whole.stages] == names
    alone = recipe(comparison=None)
    assert [stage.name for stage in alone.stages] == ["offline_rl", "distillation"]
    assert alone.headline == ["distillation/score", "distillation/random_score"]
    nowhere = recipe(evaluation={"students": 2})
    assert [stage.name for stage in nowhere.stages][-1] == "comparison"
    assert nowhere.headline == ["distillation/offline_loss", "distillation/random_offline_loss"]


def test_errors_are_over_seeds_and_of_one_seed_over_students():
    scores = np.arange(12.0).reshape(2, 3, 2) ** 2
    both = comparison.over_seeds({"x": scores})["x"]
    assert both == summarize(scores)
    assert comparison.over_seeds({"x": scores[:1]})["x"] == summarize(scores[0])
    metrics = comparison.score_metrics({"x": scores, "y": scores[:, :1]})
    assert set(metrics) == {"score_x", "score_x_error", "score_y"}
    np.testing.assert_array_equal(metrics["score_x"], scores.mean((1, 2)))


@pytest.mark.parametrize("data", [1, 2])
def test_everybody_plays_with_the_keys_of_the_seeds(data):
    """A policy of each seed's own, and one that all share, on one device and on two."""
    norm, keys = Norm(jnp.zeros(2), jnp.ones(2)), jax.random.split(jax.random.key(0), 2)
    traced = []

    def measure(params, norm, key):
        traced.append(params.shape)
        return params[:, None] + jax.random.uniform(key, (4,))

    play = evaluate.Player(measure, np.asarray)
    own, shared = jnp.arange(6.0).reshape(2, 3), jnp.array([7.0])
    rivals = [
        comparison.Competitor("own", play, own, True),
        comparison.Competitor("too", play, own, True),
        comparison.Competitor("shared", play, shared, False),
    ]
    place = Placer(make_mesh(MeshConfig(data=data)), seeds=2)
    parts = comparison.score_parts(rivals, norm, keys, place)
    assert [part.name for part in parts] == ["own", "too", "shared"]
    noise = jax.vmap(lambda key: jax.random.uniform(key, (4,)))(keys)[:, None]
    for part, params in zip(parts, (own, own, jnp.stack([shared, shared])), strict=True):
        np.testing.assert_allclose(part.compute()["scores"], params[..., None] + noise, rtol=1e-6)
    assert traced == [(3,), (1,)]


def test_a_teacher_that_was_read_plays_with_its_own_normalization(tmp_path):
    """It may have been trained on other data than the set is made of."""
    policy_key, critic_key = jax.random.split(jax.random.key(3))
    critic = policies.init_q(critic_key, 3, 1, 8)
    own = Norm(jnp.array([0.5, -0.5, 2.0]), jnp.array([0.1, 3.0, 0.2]))
    teacher = Teacher(policies.init_policy(policy_key, 3, 1, 8, 2), critic, critic, own)
    save_teacher(tmp_path / "teacher.npz", teacher)
    path = str(tmp_path / "teacher.npz")
    changes = {"teacher": {"path": path}, "comparison": {}, "seeds": 1}
    run, _ = registry.parse(yaml.safe_load(TINY) | changes, "tiny.yaml")
    inputs = Inputs(run)
    place = Placer(make_mesh(MeshConfig()), seeds=1)
    results = {"comparison": dict.fromkeys(comparison.SETS)}
    parts = distill.scores_stage(run, inputs).parts(results, place)
    [played] = [part.compute()["scores"] for part in parts if part.name == "teacher"]
    play = evaluate.player(run.evaluation, run.distillation)
    crowd = jax.tree.map(lambda leaf: leaf[None], teacher.policy)
    key = distill._keys(run, "scores")[0]
    right, wrong = (play(crowd, norm, key) for norm in (own, inputs.offline()[1]))
    np.testing.assert_allclose(played[0], right, rtol=1e-5)
    assert np.abs(right - wrong).max() > 1e-3


def test_the_quickstart_is_a_valid_config_of_the_same_stages():
    path = ROOT / "configs" / "obd" / "quickstart.yaml"
    assert path.read_text().startswith("#")
    _, found = registry.parse(read_yaml(path), str(path))
    names = [stage.name for stage in found.stages]
    assert names == ["offline_rl", "distillation", "cloning", "comparison", "scores"]
