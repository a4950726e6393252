"""From a config file to a table: two tasks of digits, a few steps of everything."""

from __future__ import annotations

import json
import sys
from collections import Counter
from types import SimpleNamespace
from typing import NamedTuple

import jax
import numpy as np
import pytest
import yaml
from PIL import Image

import jaxmethods
from jaxmethods import registry
from jaxmethods.cli import main
from jaxmethods.data.images import DIGIT_TASKS, Task, digit_tasks
from jaxmethods.merging import evaluate
from jaxmethods.merging.recipes import comparison as run
from jaxmethods.merging.recipes import table
from jaxmethods.models.clip import vit
from jaxmethods.records.run_folder import RunFolder
from jaxmethods.stages import Recipe
from jaxmethods.training import runner
from tests.diagnosis import check_diagnosable
from tests.objectives import check_objectives
from tests.same_numbers import check_same_numbers

TASKS = ("digits", "parity")
SEEDS = 2
STEPS = {"steps": 2, "batch_size": 4}
CONFIG = {
    "method": "merging",
    "seed": 3,
    "seeds": SEEDS,
    "network": {"width": 8, "depth": 2, "heads": 2, "patch": 8, "features": 6},
    "pretraining": STEPS,
    "base": {"labeled": 0.05, **STEPS},
    "experts": STEPS,
    "adamerging": STEPS,
    "wemoe": STEPS,
    "ewemoe": {"prune": 0.5, "shared_router": True, "routing": "batch", **STEPS},
    "surgery": {"rank": 2, **STEPS},
    "evaluation": {"batch_size": 16},
    "training": {"log_every": 1, "evaluate_every": 2, "checkpoint_every": 2},
}


def save(task: Task, folder, permuted=False):
    """Twenty training and ten test images, whose labels may be given to others."""
    labels = task.test.labels[:10]
    np.savez(
        folder / f"{task.name}.npz",
        train_images=task.train.images[:60],
        train_labels=task.train.labels[:60],
        test_images=task.test.images[:10],
        test_labels=np.roll(labels, 1) if permuted else labels,
        class_names=np.array(task.class_names),
    )


class Runs(NamedTuple):
    """Two runs whose test labels differ."""

    stopped: RunFolder
    """Stopped after the experts, and gone on with."""
    permuted: RunFolder
    """Run in one go; labels of test images are permuted."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    pytest.importorskip("sklearn")
    folders = []
    for name in ("true", "permuted"):
        folder = tmp_path_factory.mktemp(name)
        for task in digit_tasks(TASKS):
            save(task, folder, permuted=name == "permuted")
        (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG | {"data": {"path": str(folder)}}))
        folders.append(folder)
    stopped = RunFolder(folders[0] / "run")
    config, recipe = registry.parse(yaml.safe_load((folders[0] / "tiny.yaml").read_text()), "test")
    runner.run(Recipe(recipe.stages[:3]), config, stopped)
    arguments = ["run", str(folders[0] / "tiny.yaml"), "--out", str(stopped.path), "--quiet"]
    assert main([*arguments, "--resume"]) == 0
    whole = RunFolder(folders[1] / "run")
    assert main(["run", str(folders[1] / "tiny.yaml"), "--out", str(whole.path), "--quiet"]) == 0
    return Runs(stopped, whole)


def read_table(folder: RunFolder):
    return json.loads((folder.path / "table.json").read_text())


def adapted(folder: RunFolder):
    """Results of all stages but the comparison, as they are kept."""
    results = jaxmethods.load_run(folder.path).results
    assert results.pop("comparison") is not None
    return results


@pytest.mark.slow
def test_the_table_has_every_method_and_the_report_shows_it(runs):
    found = read_table(runs.stopped)
    assert found["tasks"] == sorted(TASKS)
    assert found["seeds"] == [3, 4]
    assert tuple(found["accuracy"]) == evaluate.METHODS
    for values in found["accuracy"].values():
        assert np.shape(values) == (SEEDS, 2)
        tenths = 10 * np.asarray(values)
        np.testing.assert_allclose(tenths, np.round(tenths), atol=1e-4)
    assert np.shape(found["distance"]["surgery_v2"]) == (SEEDS, 2, 3)
    assert np.shape(found["routing"]["wemoe"]) == (SEEDS, 1, 2, 2, 2)
    written = (runs.stopped.path / "table.md").read_text()
    assert written == table.markdown(found)
    lines = written.splitlines()
    assert lines[0] == "| method | digits | parity | mean |"
    named = [line.split(" | ")[0][2:] for line in lines[2:] if line.startswith("|")]
    assert named == list(table.ROWS.values())
    report = runs.stopped.report.read_text()
    for name in ("accuracies", "representation_bias", "routing_weights"):
        assert (runs.stopped.figures / f"{name}.png").stat().st_size > 5000
        assert f"alt='{name.replace('_', ' ')}'" in report
    assert "<th>digits</th>" in report
    assert "<td>Task arithmetic + SurgeryV2</td>" in report


@pytest.mark.slow
def test_console_report_and_result_carry_the_same_numbers(runs):
    check_same_numbers(runs.stopped.path)


def test_a_cell_is_the_mean_with_its_errors_over_seeds_and_images():
    values = {name: [[0.5, 1.0], [0.7, 1.0]] for name in evaluate.METHODS}
    content = {"tasks": ["a", "b"], "test_images": [100, 50], "accuracy": values}
    line = table.markdown(content).splitlines()[2]
    # sqrt((0.25 + 0.21) / 2 / 100) = 0.048 for the first task, half of it for the mean of two.
    assert line == "| Base | 60.0 ± 10.0 (4.8) | 100.0 ± 0.0 (0.0) | 80.0 ± 5.0 (2.4) |"
    content["accuracy"] = {name: [[0.5, 1.0]] for name in evaluate.METHODS}
    assert "| 50.0 (5.0) | 100.0 (0.0) | 75.0 (2.5) |" in table.markdown(content)


@pytest.mark.slow
def test_labels_of_test_images_and_interruptions_change_nothing_that_is_adapted(runs):
    """Bit for bit; the labels differ, so that the accuracies do."""
    one, other = map(adapted, runs)
    assert len(one) == 9
    assert one.keys() == other.keys()
    for name, before in one.items():
        jax.tree.map(assert_same, before, other[name])
    assert read_table(runs.stopped)["accuracy"] != read_table(runs.permuted)["accuracy"]
    assert read_table(runs.stopped)["distance"] == read_table(runs.permuted)["distance"]


def assert_same(one, other):
    if jax.numpy.issubdtype(one.dtype, jax.dtypes.prng_key):
        one, other = jax.random.key_data(one), jax.random.key_data(other)
    np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_the_merged_tower_can_be_diagnosed(runs):
    check_diagnosable(jaxmethods.load_run(runs.stopped.path))


@pytest.mark.slow
def test_a_monitor_shows_what_is_adapted(runs):
    run = jaxmethods.load_run(runs.stopped.path)
    reported = {"surgery": lambda metrics: len(TASKS) * metrics["loss"]}
    check_objectives(run, reported, stages=("adamerging", "surgery"))


@pytest.mark.slow
def test_frozen_things_stay_and_trained_ones_move(runs):
    found = adapted(runs.stopped)
    moved = jax.tree.map(lambda leaf, origin: np.abs(leaf - origin[:, None]).max(),
                         found["experts"], found["base"].base.tower)  # fmt: skip
    assert min(jax.tree.leaves(moved["encoder"]["layers"]["mlp"])) > 0
    for name in ("adamerging", "wemoe", "ewemoe"):
        assert all(np.ptp(np.asarray(leaf)) > 0 for leaf in jax.tree.leaves(found[name]))
    assert np.abs(found["surgery"].up).max() > 0
    deep = found["surgery_v2"].block_up
    assert np.abs(deep).min(axis=(0, 2, 3, 4)).shape == (2,)
    assert (np.abs(deep).max(axis=(3, 4)) > 0).all()


@pytest.mark.slow
def test_an_image_is_encoded_once_by_each_model_that_needs_it(runs, monkeypatch):
    """Images that go through a tower, by what asks for it, of two tasks of ten test and sixty
    training images; training itself isn't counted. The models are those of a run's first seed."""
    encoded, forward = Counter(), vit.forward

    def counted(tower, vision, pixels, **options):
        caller = sys._getframe(1).f_code.co_name
        grandcaller = sys._getframe(2).f_code.co_name
        images = len(pixels)
        jax.debug.callback(lambda: encoded.update({f"{grandcaller}/{caller}": images}))
        return forward(tower, vision, pixels, **options)

    monkeypatch.setattr(vit, "forward", counted)
    config = CONFIG | {"data": {"path": str(runs.stopped.path.parent)}, "seeds": 1}
    stages = {stage.name: stage for stage in registry.parse(config, "test")[1].stages}
    results = jax.tree.map(lambda leaf: leaf[:1], adapted(runs.stopped))
    images, base = stages["base"].data({}), jax.tree.map(lambda leaf: leaf[0], results["base"].base)
    jax.jit(lambda base: stages["base"].result(SimpleNamespace(base=base), images))(base)
    for name in ("features", "comparison"):
        parts = stages[name].parts(results, lambda tree, layout: tree)
        results[name] = stages[name].finish([part.compute() for part in parts])
    jax.effects_barrier()
    heads = encoded["add/encode"]
    assert heads == 2 * 64  # chunks of 64 of 60 training images, once
    experts_and_merged = encoded["one/encode"]  # mapped over tasks: counted once for both
    assert experts_and_merged == 2 * 64  # parts of 64 of 10 test images, each model once
    plain = encoded["plain/encode"]
    assert plain == 2 * 16 * 4  # base, average, TIES, AdaMerging; batches of 16


def test_the_base_may_have_a_logit_scale_of_its_own(monkeypatch):
    pytest.importorskip("sklearn")
    scales = []
    monkeypatch.setattr(run, "pretrainer", lambda vision, config, scale: scales.append(scale))
    data = {"generate": "digits", "tasks": ["digits"]}
    for of_base in (None, 20.0):
        network = CONFIG["network"] | {"logit_scale": 8.0, "patch": 4}
        base = CONFIG["base"] | {"logit_scale": of_base}
        config = run.Run.model_validate(CONFIG | {"data": data, "network": network, "base": base})
        run.base_stage(config, run.Inputs(config))
    assert scales == [8.0, 20.0]


def test_what_is_wrong_with_the_data_is_said_before_anything_is_written(tmp_path, capsys):
    pytest.importorskip("sklearn")
    for task in digit_tasks(TASKS):
        save(task, tmp_path)
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(CONFIG | {"data": {"path": str(tmp_path)}}))
    out = tmp_path / "run"

    def refused(reason, *changes):
        assert main(["run", str(config), "--out", str(out), *changes]) == 2
        assert reason in capsys.readouterr().err
        assert not out.exists()

    refused("letters.npz: no such file", "--data.tasks", "[digits, letters]")
    refused("expected either a folder or `generate`", "--data.path", "null")
    refused("surgery.batch_size: expected at most the 10 test images", "--surgery.batch_size", "11")
    refused("patch_size: expected a divisor of image_size = 16", "--network.patch", "5")
    refused("num_attention_heads: expected a divisor", "--network.heads", "3")
    generate = ["--data.path", "null", "--data.generate", "digits"]
    refused("tasks: expected some with `generate`", *generate)
    refused(f"expected some of {', '.join(DIGIT_TASKS)}", *generate, "--data.tasks", "[digit]")
    whole = (tmp_path / "parity.npz").read_bytes()
    (tmp_path / "parity.npz").write_bytes(whole[:2000])
    refused("parity.npz: cannot be read as npz")
    broken = tmp_path / "letters/test/b/1.png"
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "letters" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "letters" / name / "1.png")
    broken.write_bytes(broken.read_bytes()[:-30])
    assert main(["run", str(config), "--out", str(out), "--data.tasks", "[letters]"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"data {broken}: cannot be read as an image (" in line
    assert not out.exists()
    sized = [*generate, "--data.tasks", "[digits]", "--data.image_size", "16"]
    refused("image_size: expected null with `generate`", *sized)


def test_the_first_labels_are_the_ones_that_the_base_sees():
    pytest.importorskip("sklearn")
    values = CONFIG | {"data": {"generate": "digits", "tasks": list(TASKS)}}
    inputs = run.Inputs(run.Run.model_validate(values))
    batch = inputs.labeled()
    np.testing.assert_array_equal(batch.labeled, [70, 70])
    labels = np.asarray(batch.images.labels[0, : batch.images.counts[0]])
    share = np.bincount(labels) * 70 / len(labels)
    assert np.all(np.abs(np.bincount(labels[:70]) - share) <= 1)
    assert set(labels[:10]) == set(range(10))
