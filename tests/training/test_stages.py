"""The contract of a run: results are computed once, kept, and found by name."""

from __future__ import annotations

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmethods
from jaxmethods import cli, registry
from jaxmethods.layout import Layout, seed_axes
from jaxmethods.numerics.statistics import Summary
from jaxmethods.records.run_folder import RunFolder
from jaxmethods.stages import Compute, Evaluation, Part, Recipe, Train, Write, check_recipe
from jaxmethods.training import runner
from jaxmethods.training.judging import StageError
from jaxmethods.training.stopping import Interrupted
from tests.training import toy
from tests.training.test_loop import assert_same_bits, rows_without_times


class Counted:
    """Squares of what the first stage found, in three parts, and how often each was computed."""

    def __init__(self, kill_at=None):
        self.calls, self.kill_at = [], kill_at

    def parts(self, results, place):
        def part(power):
            def compute():
                self.calls.append(power)
                if power == self.kill_at:
                    os.kill(os.getpid(), signal.SIGTERM)
                return {"value": results["first"] ** power}

            return Part(f"power-{power}", compute)

        return [part(power) for power in (1, 2, 3)]


def finish(parts):
    return {"powers": np.stack([part["value"] for part in parts])}


def recipe(counted, *inserted):
    """A training stage whose result is its weights, a computation on it, and one more training."""
    first = toy.recipe().stages[0]._replace(result=lambda state, batch: state.weights)
    powers = Compute(
        "powers", counted.parts, finish, lambda found: {"largest": found["powers"].max()}
    )
    second = Train(
        "second",
        toy.noisy_descent(),
        17,
        lambda results: results["powers"]["powers"].sum(0),
        evaluation=Evaluation(toy.distance),
        layout=Layout(per_seed=("",)),
    )
    return Recipe([first, *inserted, powers, second], headline=("second/score", "powers/largest"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder, counted = RunFolder(tmp_path_factory.mktemp("whole") / "run"), Counted()
    results = runner.run(recipe(counted), toy.config(seeds=2), folder)
    return folder, results, counted


def test_results_are_what_stages_say_they_are(whole):
    _, results, counted = whole
    assert results["first"].shape == (2, 3)
    expected = np.stack([results["first"] ** power for power in (1, 2, 3)])
    np.testing.assert_allclose(results["powers"]["powers"], expected, rtol=1e-6)
    assert counted.calls == [1, 2, 3]


def test_a_finished_run_computes_nothing_again(whole):
    folder, results, _ = whole
    counted, before = Counted(), rows_without_times(folder)
    again = runner.run(recipe(counted), toy.config(seeds=2), folder, resume=True)
    assert_same_bits(jax.tree.map(jnp.asarray, again), jax.tree.map(jnp.asarray, results))
    assert counted.calls == []
    assert rows_without_times(folder) == before


def test_a_stage_that_is_inserted_changes_no_other_result(whole, tmp_path):
    _, results, _ = whole
    between = Train("between", toy.noisy_descent(), 5, lambda found: found["first"][0] + 1.0)
    other = runner.run(recipe(Counted(), between), toy.config(seeds=2), RunFolder(tmp_path / "run"))
    assert "between" in other
    for name, found in results.items():
        assert_same_bits(*(jax.tree.map(jnp.asarray, x) for x in (other[name], found)))


def test_a_computation_that_is_stopped_goes_on_with_its_next_part(whole, tmp_path):
    folder, counted = RunFolder(tmp_path / "run"), Counted(kill_at=2)
    with pytest.raises(Interrupted, match=r"after part 2 of 3 \(stage powers\)"):
        runner.run(recipe(counted), toy.config(seeds=2), folder)
    again = Counted()
    results = runner.run(recipe(again), toy.config(seeds=2), folder, resume=True)
    assert (counted.calls, again.calls) == ([1, 2], [3])
    np.testing.assert_array_equal(results["powers"]["powers"], whole[1]["powers"]["powers"])
    assert_same_bits(results["second"], whole[1]["second"])
    assert rows_without_times(folder) == rows_without_times(whole[0])


def test_a_damaged_part_is_named(whole, tmp_path):
    folder = RunFolder(tmp_path / "run")
    runner.run(recipe(Counted()), toy.config(), folder)
    file = folder.parts / "powers" / "power-2.npz"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(StageError, match=r"power-2\.npz: cannot be read .*remove it"):
        runner.run(recipe(Counted()), toy.config(), folder, resume=True)


def test_a_written_folder_is_there_whole_or_not_at_all(tmp_path):
    def write(results, path, advance):
        path.mkdir()
        (path / "half").write_text("x")
        if broken:
            raise OSError(28, "No space left on device")
        advance(1, 1)
        return {"files": 1}

    folder, broken = RunFolder(tmp_path / "run"), True
    stages = Recipe([Write("model", write), Train("t", toy.noisy_descent(), 4, seen)])
    with pytest.raises(OSError, match="No space left"):
        runner.run(stages, toy.config(), folder)
    assert not (folder.path / "model").exists()
    broken = False
    results = runner.run(stages, toy.config(), folder, resume=True)
    assert results["model"] == folder.path / "model"
    assert folder.read_metrics()[0]["evaluate/files"] == 1
    assert [entry.name for entry in folder.path.glob(".partial*")] == []


def seen(results):
    assert (results["model"] / "half").is_file()
    return jnp.zeros(3)


def test_a_recipe_with_wrong_names_is_refused():
    first = toy.recipe().stages[0]
    with pytest.raises(ValueError, match="unique names, got 'first'"):
        check_recipe(Recipe([first, first]))
    with pytest.raises(ValueError, match="headline: 'second/score' names none"):
        check_recipe(Recipe([first], headline=("second/score",)))
    with pytest.raises(ValueError, match="reads: 'x' is none"):
        check_recipe(Recipe([first], reads=("x",)))


def test_axes_of_seeds_are_found_by_name():
    batch = {"own": {"a": jnp.zeros((2, 3)), "b": jnp.zeros(2)}, "shared": jnp.zeros(3), "n": None}
    axes = seed_axes(batch, ("^own/",))
    assert axes == {"own": {"a": 0, "b": 0}, "shared": None, "n": None}
    with pytest.raises(ValueError, match=r"'\^owm/' finds none of the leaves"):
        seed_axes(batch, ("^owm/",))


def test_console_report_and_result_have_the_numbers_of_the_record(whole):
    folder, _, _ = whole
    runner.write_results(folder, recipe(Counted()).headline)
    content = json.loads(folder.result.read_text())
    assert content["headline"] == ["second/score", "powers/largest"]
    assert content["seeds"] == [0, 1]
    assert list(content["stages"]) == ["first", "powers", "second"]
    row = [row for row in folder.read_metrics() if "evaluate/score" in row][-1]
    score = content["stages"]["second"]["metrics"]["score"]
    assert score["values"] == row["evaluate/score"]
    assert score["mean"] == pytest.approx(np.mean(row["evaluate/score"]))
    assert score["error"] == pytest.approx(np.std(row["evaluate/score"], ddof=1) / 2**0.5)
    summary = Summary(score["mean"], score["error"])
    assert str(summary) in folder.report.read_text()


def test_runs_from_python(tmp_path, monkeypatch):
    monkeypatch.setitem(
        registry.METHODS, "toy", registry.Entry("tests.training.distributed_toy", "A toy.")
    )
    config = {"method": "toy", "steps": 8, "training": {"log_every": 4}}
    run = jaxmethods.run(config, tmp_path / "run", seed=3)
    loaded = jaxmethods.load_run(tmp_path / "run")
    assert loaded.config == run.config
    assert loaded.config.seed == 3
    assert_same_bits(loaded.results["second"], run.results["second"])
    assert_same_bits(loaded.state("first"), run.results["first"])
    assert loaded.metrics["second"]["score"].shape == (1,)
    assert loaded.metrics.keys() == run.metrics.keys()
    assert (tmp_path / "run" / "report.html").is_file()
    with pytest.raises(ValueError, match=r"stage: expected one of \['first', 'second'\]"):
        loaded.state("third")


def test_what_evaluate_and_compare_write_are_numbers_with_their_errors(whole, tmp_path, capsys):
    folder, _, _ = whole
    runner.write_results(folder, recipe(Counted()).headline)
    assert cli.main(["compare", str(folder.path), "--json", str(tmp_path / "c.json")]) == 0
    content = json.loads((tmp_path / "c.json").read_text())["runs"][str(folder.path)]
    assert content == json.loads(folder.result.read_text())
    assert "±" in capsys.readouterr().out


def test_where_a_stage_grows_only_its_own_kind_of_folder_is_removed(tmp_path):
    folder = RunFolder(tmp_path / "run")
    stages = [Train(name, toy.noisy_descent(), 4, seen_nothing) for name in ("a", "figures")]
    runner.run(Recipe(stages), toy.config(), folder)
    folder.figures.mkdir(exist_ok=True)
    (folder.figures / "mine.png").write_text("kept")
    longer = [stages[0]._replace(steps=8), stages[1]]
    assert runner._begin_anew(longer, folder) == ["figures"]
    assert (folder.figures / "mine.png").read_text() == "kept"


def seen_nothing(results):
    return jnp.zeros(3)
