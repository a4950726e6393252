"""Which fields make a run another run, and what a run keeps that goes on with others."""

from __future__ import annotations

import json
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from jaxmethods import registry
from jaxmethods.config import LoopConfig, MeshConfig, OnResume, on_resume, validate
from jaxmethods.method import Method
from jaxmethods.records.run_folder import RunFolder, RunFolderError
from jaxmethods.reports.compare import compare
from jaxmethods.reports.report import write_report
from jaxmethods.stages import Evaluation, Recipe, Train
from jaxmethods.training import runner
from jaxmethods.training.checkpoints import CheckpointError, Checkpoints
from tests.training import distributed_toy, toy
from tests.training.test_loop import assert_same_bits, interrupted_run

NAN, INF = float("nan"), float("inf")


def watched(log_every: int) -> LoopConfig:
    return LoopConfig(log_every=log_every, evaluate_every=5, checkpoint_every=3)


def test_how_a_run_is_watched_may_change_and_its_bits_stay(tmp_path):
    whole = runner.run(toy.recipe(), toy.config(), RunFolder(tmp_path / "whole"))
    folder = interrupted_run(tmp_path / "run")
    changed = toy.config().model_copy(update={"training": watched(1_000_000)})
    assert_same_bits(runner.run(toy.recipe(), changed, folder, resume=True), whole)
    assert folder.read_config()["training"]["log_every"] == 1_000_000
    other = toy.config().model_copy(update={"training": watched(1)})
    assert_same_bits(runner.run(toy.recipe(), other, RunFolder(tmp_path / "by one")), whole)


def test_a_finished_run_that_grows_is_the_longer_run_bit_for_bit(tmp_path):
    run = distributed_toy.Run(method="toy", steps=6, training=toy.config().training)
    longer = run.model_copy(update={"steps": 21})
    folder = RunFolder(tmp_path / "run")
    runner.run(distributed_toy.recipe(run), run, folder)
    grown = runner.run(distributed_toy.recipe(longer), longer, folder, resume=True)
    whole = runner.run(distributed_toy.recipe(longer), longer, RunFolder(tmp_path / "whole"))
    assert_same_bits(grown, whole)  # the second stage too: it began anew from the longer first
    assert folder.read_config()["steps"] == 21
    with pytest.raises(RunFolderError, match=r"steps was 21, now 6 \(it may only grow\)"):
        runner.run(distributed_toy.recipe(run), run, folder, resume=True)


def test_every_other_field_makes_another_run(tmp_path):
    run = distributed_toy.Run(method="toy", steps=6)
    folder = RunFolder(tmp_path / "run")
    with folder.claim(run, resume=False):
        pass
    for change in ({"seed": 1}, {"seeds": 2}, {"width": 3}):
        other = run.model_copy(update=change)
        with pytest.raises(RunFolderError, match="another config"), folder.claim(other, True):
            pass
    same = run.model_copy(update={"mesh": MeshConfig(data=2)})
    with folder.claim(same, resume=True) as grew:
        assert not grew


def test_a_field_added_since_has_its_default_in_an_older_run(tmp_path):
    folder = RunFolder(tmp_path)
    folder.config.write_text("method: toy\nsteps: 6\n")
    with folder.claim(distributed_toy.Run(method="toy", steps=6), resume=True) as grew:
        assert not grew
    folder.config.write_text("method: toy\nsteps: 6\ngone: 1\n")
    with (
        pytest.raises(RunFolderError, match="gone: unknown field"),
        folder.claim(distributed_toy.Run(method="toy", steps=6), resume=True),
    ):
        pass


def test_the_marks_of_every_recipe():
    def marks(values):
        config = validate(registry.find(values["method"], "").config, values, "")
        found = on_resume(config)
        assert found.pop("training") is found.pop("mesh") is OnResume.CHANGE
        return found

    grow, change = OnResume.GROW, OnResume.CHANGE
    environment = {"environment": {"name": "predator_prey"}, "environment_steps": 1}
    assert marks({"method": "commformer", **environment}) == {"environment_steps": grow}
    assert marks({"method": "misconceptions"}) == {"learner.steps": grow}
    merging = marks({"method": "merging", "data": {"generate": "digits", "tasks": ["a"]}})
    stages = ("base", "experts", "adamerging", "wemoe", "ewemoe", "surgery")
    assert merging == {f"{stage}.steps": grow for stage in stages}
    data = {"data": {"generate": "pendulum"}, "teacher": {"learn": "iql"}, "comparison": {}}
    assert marks({"method": "obd", **data}) == {
        "teacher.steps": grow,
        "density.flow.steps": grow,
        "outer_steps": grow,
        "evaluation.processes": change,
        "comparison.cloning_steps": grow,
    }


@pytest.mark.parametrize(
    ("scores", "best", "kept"),
    [
        ([0.1, 0.9, 0.2, 0.3], 2, [2, 3, 4]),
        ([0.1, 0.9, NAN, 0.2, 0.3], 2, [2, 4, 5]),
        ([0.1, 0.9, 0.2, 0.3, NAN], 2, [2, 4, 5]),
        ([NAN, 0.9, INF, -INF, 0.3], 2, [2, 4, 5]),
        ([NAN, NAN, NAN], 3, [2, 3]),
        ([0.5, 0.5, 0.1, 0.1], 2, [2, 3, 4]),
        ([None, None, None], 3, [2, 3]),
    ],
)
def test_the_best_checkpoint_has_the_highest_finite_score(tmp_path, scores, best, kept):
    saved = Checkpoints(tmp_path / "c", scored=True)
    for step, score in enumerate(scores, 1):
        saved.save(step, {"x": jnp.ones(2)}, score)
    assert (saved.best(), saved.steps()) == (best, kept)


class Held(NamedTuple):
    count: jax.Array
    nested: dict


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("state.count", Held(jnp.float32(0), {"b": [jnp.zeros(2)], "key": jax.random.key(1)})),
        (
            "state.nested.b.0",
            Held(jnp.int32(0), {"b": [jnp.zeros(2, "bfloat16")], "key": jax.random.key(1)}),
        ),
    ],
)
def test_numbers_of_another_type_are_refused(tmp_path, name, like):
    """Orbax converts them: 16777217 steps would be 16777216, and float64 float32."""
    held = Held(jnp.int32(16777217), {"b": [jnp.ones(2)], "key": jax.random.key(0)})
    saved = Checkpoints(tmp_path / "c")
    saved.save(1, held, None)
    same = jax.tree.map(jnp.zeros_like, held)
    assert int(saved.restore(1, same).count) == 16777217
    with pytest.raises(CheckpointError, match=rf"{name}: expected (float32|bfloat16), got "):
        saved.restore(1, like)


def test_an_evaluation_that_is_not_finite_is_null_and_no_best(tmp_path):
    table = jnp.array([0.0, 0.1, 0.9, NAN, 0.2, INF])
    method = Method(lambda key, batch: jnp.int32(0), lambda s, batch: (s + 1, {"loss": 1.0}))
    scored = Evaluation(lambda state, batch, key: {"score": table[state]}, score="score")
    stage = Train("s", method, 5, evaluation=scored)
    config = toy.config().model_copy(
        update={"training": LoopConfig(log_every=1, evaluate_every=1, checkpoint_every=1)}
    )
    folder = RunFolder(tmp_path / "run")
    runner.run(Recipe([stage]), config, folder)
    assert Checkpoints(folder.checkpoints / "s", scored=True).steps() == [2, 4, 5]
    assert Checkpoints(folder.checkpoints / "s", scored=True).best() == 2

    def refuse(word):
        raise AssertionError(word)

    lines = folder.metrics.read_text().splitlines()
    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [row["evaluate/score"] is None for row in rows] == [False, False, True, False, True]
    write_report(folder)
    assert "nan" in folder.report.read_text()
    assert math.isnan(float(compare([folder]).splitlines()[-1].split(" | ")[-1].strip(" |")))


def test_rows_of_older_versions_with_the_word_nan_become_null(tmp_path):
    folder = RunFolder(tmp_path)
    folder.metrics.write_text('{"stage": "s", "step": 1, "evaluate/score": [NaN, 1.0]}\n')
    folder.keep_metrics_until({"s": 1})
    assert "NaN" not in folder.metrics.read_text()
    assert folder.read_metrics()[0]["evaluate/score"] == [None, 1.0]
