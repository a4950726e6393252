"""The loop: one trace, no transfers, exact resume, honest stops."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from jaxmethods import registry
from jaxmethods.config import LoopConfig
from jaxmethods.layout import Layout
from jaxmethods.method import Method
from jaxmethods.records.run_folder import RunFolder, RunFolderError
from jaxmethods.stages import Evaluation, Recipe, Train
from jaxmethods.training import loop, runner
from jaxmethods.training.checkpoints import CheckpointError, Checkpoints
from jaxmethods.training.stopping import Interrupted
from tests.training import toy

ROOT = Path(__file__).parents[2]


def rows_without_times(folder: RunFolder) -> list[dict]:
    timed = ("seconds", "steps_per_second")
    return [{k: v for k, v in row.items() if k not in timed} for row in folder.read_metrics()]


def key_data(leaf):
    typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if typed else leaf)


def assert_same_bits(left, right):
    chex.assert_trees_all_equal(jax.tree.map(key_data, left), jax.tree.map(key_data, right))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("whole") / "run")
    return folder, runner.run(toy.recipe(), toy.config(), folder)


def test_the_loop_equals_calling_step_in_python(whole_run):
    method = toy.noisy_descent()
    init_keys, _ = loop.seed_keys(toy.config())
    state = method.init(init_keys[0], jnp.arange(3.0))
    step = jax.jit(method.step)
    for _ in range(23):
        state, _ = step(state, jnp.arange(3.0))
    np.testing.assert_allclose(whole_run[1]["first"].weights[0], state.weights, rtol=1e-6)
    assert key_data(whole_run[1]["first"].key[0]).tolist() == key_data(state.key).tolist()


def test_every_chunk_is_a_row_with_the_mean_over_its_steps(whole_run):
    first = [row for row in whole_run[0].read_metrics() if row["stage"] == "first"]
    assert [row["step"] for row in first] == [4, 8, 12, 16, 20, 23]
    assert [row["train/count"] for row in first] == [1.5, 5.5, 9.5, 13.5, 17.5, 21.0]
    assert [row["step"] for row in first if "evaluate/score" in row] == [8, 16, 23]


def test_the_mean_over_many_steps_has_all_digits_whatever_a_metrics_type(tmp_path):
    """A sum of bfloat16 numbers stops growing at 256."""
    ones = {name: jnp.ones((), name) for name in ("bfloat16", "float16", "float32", "int32")}
    method = Method(lambda key, batch: jnp.int32(0), lambda state, batch: (state + 1, ones))
    training = LoopConfig(log_every=700, evaluate_every=700, checkpoint_every=700)
    config, folder = toy.config().model_copy(update={"training": training}), tmp_path / "run"
    runner.run(Recipe([Train("s", method, 700)]), config, RunFolder(folder))
    [row] = RunFolder(folder).read_metrics()
    assert [row[f"train/{name}"] for name in ones] == [1.0] * 4


def test_the_second_stage_starts_from_the_firsts_final_state(whole_run):
    first, second = whole_run[1]["first"], whole_run[1]["second"]
    target = first.weights.mean(0)
    assert jnp.linalg.norm(second.weights[0] - target) < jnp.linalg.norm(target)


def test_two_newest_and_the_best_checkpoints_are_kept(tmp_path):
    folder = RunFolder(tmp_path / "run")
    rising = Method(
        lambda key, batch: jnp.float32(0), lambda state, batch: (state + 1, {"loss": state})
    )
    scored = Evaluation(lambda state, batch, key: {"score": -jnp.abs(state - 9)}, score="score")
    runner.run(Recipe([Train("s", rising, 40, evaluation=scored)]), toy.config(), folder)
    assert Checkpoints(folder.checkpoints / "s", scored=True).steps() == [8, 32, 40]
    assert Checkpoints(folder.checkpoints / "s", scored=True).best() == 8


def test_each_of_several_seeds_equals_its_single_run(tmp_path):
    first = toy.recipe().stages[:1]
    several = toy.config(seed=5, seeds=3)
    together = runner.run(Recipe(first), several, RunFolder(tmp_path / "together"))["first"]
    one = toy.config(seed=6)
    alone = runner.run(Recipe(first), one, RunFolder(tmp_path / "alone"))["first"]
    assert_same_bits(jax.tree.map(lambda leaf: leaf[1:2], together), alone)


def test_each_seed_gets_its_own_part_of_a_batch_with_a_seed_axis(tmp_path):
    """The second stage's target is what the same seed found in the first, plus a shared offset."""
    first = toy.recipe().stages[0]
    descent = toy.noisy_descent()
    method = Method(
        lambda key, batch: descent.init(key, batch[0]),
        lambda state, batch: descent.step(state, batch[0] + batch[1]),
    )

    def data(results):
        return results["first"].weights, jnp.float32(10.0)

    second = Train("second", method, 60, data, layout=Layout(per_seed=("^0$",)))
    folder = RunFolder(tmp_path / "run")
    results = runner.run(Recipe([first, second]), toy.config(seeds=3), folder)
    found, ended = results["first"], results["second"]
    assert jnp.abs(ended.weights - (found.weights + 10.0)).max() < 0.3
    assert jnp.abs(found.weights[0] - found.weights[1]).max() > 1e-3


def test_the_host_judges_measures_of_all_seeds_and_the_report_gets_results(tmp_path):
    def measure(state, batch, key):
        return {"off": state.weights - batch, "noise": jax.random.normal(key)}

    def judge(measures):
        assert isinstance(measures["off"], np.ndarray)
        assert len(measures["noise"]) == 3
        return {"distance": np.abs(measures["off"]).max(1)}

    def report(results, folder):
        np.save(folder / "weights.npy", results["first"])

    stage = (
        toy.recipe()
        .stages[0]
        ._replace(
            evaluation=Evaluation(measure, judge, score="distance"),
            result=lambda state, batch: state.weights,
        )
    )
    folder, config = RunFolder(tmp_path / "run"), toy.config(seeds=3)
    recipe = Recipe([stage], report, reads=("first",))
    found = runner.run(recipe, config, folder)["first"]
    expected = np.abs(found - jnp.arange(3.0)).max(1)
    last = folder.read_metrics()[-1]
    np.testing.assert_allclose(last["evaluate/distance"], expected, rtol=1e-6)
    np.testing.assert_array_equal(np.load(folder.path / "weights.npy"), found)
    [(name, step, metrics)] = runner.evaluate(recipe, config, folder, "latest", seed=5)
    assert (name, step) == ("first", 23)
    np.testing.assert_allclose(metrics["distance"], expected, rtol=1e-6)


def test_step_is_traced_once_over_a_whole_run(tmp_path):
    method = toy.noisy_descent()
    traced = chex.assert_max_traces(method.step, n=1)
    stages = toy.recipe(method=Method(method.init, traced)).stages[:1]
    runner.run(Recipe(stages), toy.config(), RunFolder(tmp_path / "run"))


def test_nothing_is_transferred_inside_a_chunk():
    method = toy.noisy_descent()
    batch = jnp.arange(3.0)
    state = loop.init_state(method, loop.seed_keys(toy.config())[0], batch)
    chunk = loop.compile_chunk(method, state, batch, 4)
    count = jnp.int32(4)
    with jax.transfer_guard("disallow"):
        state, metrics = chunk.run(state, batch, count)
    assert metrics["loss"].shape == (4, 1)


def test_the_state_is_donated():
    method = toy.noisy_descent()
    batch = jnp.arange(3.0)
    state = loop.init_state(method, loop.seed_keys(toy.config())[0], batch)
    loop.compile_chunk(method, state, batch, 4).run(state, batch, jnp.int32(4))
    assert state.weights.is_deleted()


def test_a_nan_stops_the_run_and_names_step_metric_and_last_good_checkpoint(tmp_path):
    folder = RunFolder(tmp_path / "run")
    recipe = toy.recipe(method=toy.noisy_descent(nan_at=18))
    with pytest.raises(runner.DivergedError, match=r"step 18: metric 'loss' is nan.*first/16"):
        runner.run(recipe, toy.config(), folder)
    assert Checkpoints(folder.checkpoints / "first").latest() == 16


class StopAt(toy.SlowProgress):
    """Sends this process a signal when a step is reached."""

    def __init__(self, step: int, signal_number: int):
        super().__init__()
        self.at, self.number = step, signal_number

    def row(self, row):
        if row["step"] == self.at:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_resume_ends_in_the_same_bits(tmp_path, whole_run, number):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(Interrupted, match="saved at step 12 of 23") as stopped:
        runner.run(toy.recipe(), toy.config(), folder, progress=StopAt(12, number))
    assert stopped.value.code == 128 + number
    assert Checkpoints(folder.checkpoints / "first").latest() == 12
    assert_same_bits(runner.run(toy.recipe(), toy.config(), folder, resume=True), whole_run[1])
    assert rows_without_times(folder) == rows_without_times(whole_run[0])


def test_a_signal_before_the_first_step_says_that_nothing_was_to_be_saved(tmp_path):
    class Early(toy.SlowProgress):
        def compiled(self, seconds):
            os.kill(os.getpid(), signal.SIGINT)

    folder = RunFolder(tmp_path / "run")
    with pytest.raises(Interrupted, match="before the first step"):
        runner.run(toy.recipe(), toy.config(), folder, progress=Early())
    assert folder.read_metrics() == []


@pytest.mark.slow
def test_kill_9_at_random_moments_then_resume_ends_in_the_same_bits(tmp_path):
    draw = random.Random(time.time_ns())
    whole = RunFolder(tmp_path / "whole")
    expected = runner.run(toy.recipe(60, 30), toy.config(seeds=2), whole)
    folder = tmp_path / "killed"
    kills = 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.training.toy", str(folder), "--resume"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        process.stdout.readline()  # training has begun
        time.sleep(draw.uniform(0.0, 1.0))
        process.kill()
        process.wait()
        process.stdout.close()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 2
    resumed = runner.run(toy.recipe(60, 30), toy.config(seeds=2), RunFolder(folder), resume=True)
    assert_same_bits(resumed, expected)
    assert rows_without_times(RunFolder(folder)) == rows_without_times(whole)


def test_resuming_a_finished_run_changes_nothing(whole_run):
    before = rows_without_times(whole_run[0])
    again = runner.run(toy.recipe(), toy.config(), whole_run[0], resume=True)
    assert_same_bits(again, whole_run[1])
    assert rows_without_times(whole_run[0]) == before


def snapshot(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): path.read_bytes() for path in files if path.name != ".lock"}


def interrupted_run(path: Path) -> RunFolder:
    folder = RunFolder(path)
    with pytest.raises(Interrupted):
        runner.run(toy.recipe(), toy.config(), folder, progress=StopAt(20, signal.SIGTERM))
    return folder


def test_a_truncated_checkpoint_is_named_and_left_alone(tmp_path):
    folder = interrupted_run(tmp_path / "run")
    newest = folder.checkpoints / "first" / "20"
    for path in newest.rglob("d/*"):
        path.write_bytes(path.read_bytes()[:7])
    before = snapshot(newest)
    with pytest.raises(CheckpointError, match=r"first/20: cannot be restored .*from step 16"):
        runner.run(toy.recipe(), toy.config(), folder, resume=True)
    assert snapshot(newest) == before


def test_a_checkpoint_of_another_program_is_refused(tmp_path):
    folder = interrupted_run(tmp_path / "run")
    other = Method(
        lambda key, batch: {"another": jnp.zeros(7)}, lambda state, batch: (state, {"loss": 0.0})
    )
    before = snapshot(folder.checkpoints)
    with pytest.raises(CheckpointError, match="cannot be restored"):
        runner.run(toy.recipe(method=other), toy.config(), folder, resume=True)
    assert snapshot(folder.checkpoints) == before


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    before = snapshot(tmp_path)
    for resume in (False, True):
        with pytest.raises(RunFolderError, match="not a run folder"):
            runner.run(toy.recipe(), toy.config(), RunFolder(tmp_path), resume)
    assert snapshot(tmp_path) == before


def test_a_second_run_into_the_same_folder_is_refused(whole_run):
    before = snapshot(whole_run[0].path)
    with pytest.raises(RunFolderError, match="--resume"):
        runner.run(toy.recipe(), toy.config(), whole_run[0])
    assert snapshot(whole_run[0].path) == before


def test_resuming_with_another_config_names_what_changed(whole_run):
    with pytest.raises(RunFolderError, match="seed was 0, now 3"):
        runner.run(toy.recipe(), toy.config(seed=3), whole_run[0], resume=True)


def test_a_folder_in_use_by_another_process_is_refused(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with (
        folder.claim(toy.config(), resume=False),
        pytest.raises(RunFolderError, match="another process"),
        RunFolder(tmp_path / "run").claim(toy.config(), resume=True),
    ):
        pass


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot be written|is a file"):
        runner.run(toy.recipe(), toy.config(), RunFolder(tmp_path / "file" / "run"))


def test_an_unfinished_last_line_of_metrics_is_dropped(tmp_path):
    folder = interrupted_run(tmp_path / "run")
    with folder.metrics.open("a") as file:
        file.write('{"stage": "first", "st')
    runner.run(toy.recipe(), toy.config(), folder, resume=True)
    for line in folder.metrics.read_text().splitlines():
        assert "step" in json.loads(line)


def test_equal_configs_share_their_method_and_others_do_not():
    """The compiled step is found again by the function that it was traced from."""

    def method(**changes):
        values = yaml.safe_load((ROOT / "configs/commformer/demo.yaml").read_text()) | changes
        (train,) = registry.parse(values, "test")[1].stages
        return train.method

    assert method() is method()
    assert method(seed=3) is method()
    assert method(environment_steps=10**6) is not method()
