"""Whoever reads a run doesn't touch what the run writes."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import jax.numpy as jnp
import pytest

from jaxmethods.records.run_folder import RunFolder
from jaxmethods.training import runner
from jaxmethods.training.checkpoints import CheckpointError, Checkpoints
from tests.training import distributed_toy, toy
from tests.training.test_loop import (
    ROOT,
    assert_same_bits,
    interrupted_run,
    rows_without_times,
    snapshot,
)

STEPS = int(os.environ.get("JAXMETHODS_HAMMERED_STEPS", "60"))
"""A checkpoint at every step; 6000 are a minute and more."""


def started(module: str, *arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def unfinished_checkpoint(folder: RunFolder):
    """What a process that writes its next checkpoint has in the folder at that moment."""
    writing = folder.checkpoints / "first" / "24.orbax-checkpoint-tmp"
    (writing / "default.orbax-checkpoint-tmp").mkdir(parents=True)
    (writing / "default.orbax-checkpoint-tmp" / "manifest").write_text("half of it")
    return writing


def test_evaluation_leaves_every_file_as_it_was_the_unfinished_checkpoint_too(tmp_path):
    folder = interrupted_run(tmp_path / "run")
    writing = unfinished_checkpoint(folder)
    before = snapshot(folder.path)
    for checkpoint in ("latest", "best"):
        [(stage, step, _)] = runner.evaluate(toy.recipe(), toy.config(), folder, checkpoint, seed=0)
        assert (stage, step) == ("first", 20)  # the second has not begun: that is no error
    assert snapshot(folder.path) == before
    runner.run(toy.recipe(), toy.config(), folder, resume=True)
    assert not writing.exists()  # the process that trains clears what another one left


def test_a_stage_of_no_steps_is_read_like_any_other(tmp_path):
    folder, recipe = RunFolder(tmp_path / "run"), toy.recipe(0, 4)
    results = runner.run(recipe, toy.config(), folder)
    read = runner.read_results(recipe, toy.config(), folder)
    for name, found in results.items():
        assert_same_bits(read[name], found)
    steps = [row[1] for row in runner.evaluate(recipe, toy.config(), folder, "latest", seed=0)]
    assert steps == [0, 4]
    runner.run(recipe, toy.config(), folder, resume=True)


def test_a_checkpoint_that_goes_while_it_is_read_makes_way_for_the_newest(tmp_path):
    folder = tmp_path / "c"
    writer = Checkpoints(folder)
    for step in (1, 2):
        writer.save(step, {"x": jnp.full(2, float(step))}, None)

    class Late(Checkpoints):
        """Reads a checkpoint only after the writer has gone on by three."""

        def restore(self, step, like):
            for later in (3, 4, 5):
                writer.save(later, {"x": jnp.full(2, float(later))}, None)
            return super().restore(step, like)

    step, state = runner._restored(Late(folder), "latest", {"x": jnp.zeros(2)})
    assert step == 5
    assert state["x"].tolist() == [5.0, 5.0]
    with pytest.raises(CheckpointError, match=r"expected best, latest or one of \[4, 5\]"):
        runner._restored(Checkpoints(folder), "2", {"x": jnp.zeros(2)})


def test_a_damaged_checkpoint_is_no_vanished_one(tmp_path):
    saved = Checkpoints(tmp_path / "c")
    saved.save(1, {"x": jnp.ones(2)}, None)
    for path in saved.path(1).rglob("d/*"):
        path.write_bytes(path.read_bytes()[:7])
    with pytest.raises(CheckpointError, match="c/1: cannot be restored"):
        runner._restored(saved, "latest", {"x": jnp.zeros(2)})


@pytest.mark.slow
def test_readers_hammering_a_run_have_no_effect_on_it(tmp_path):
    config = tmp_path / "toy.yaml"
    every = "log_every: 1, evaluate_every: 1, checkpoint_every: 1"
    config.write_text(f"method: toy\nsteps: {STEPS}\ntraining: {{{every}}}\n")
    run = tmp_path / "read" / "run"
    train = ("tests.training.distributed_toy", "run", config, "--quiet", "--out")
    writer = started(*train, run)
    while not list((run / "checkpoints").glob("first/[0-9]*")):
        assert writer.poll() is None, writer.communicate()
        time.sleep(0.05)
    kinds = (("latest", "report", "compare"), ("best", "latest", "compare", "report"))
    readers = [started("tests.training.reading_toy", run, *kind) for kind in kinds]
    _, errors = writer.communicate()
    (run.parent / "stop").touch()
    assert (writer.returncode, errors) == (0, "")
    for reader in readers:
        said, errors = reader.communicate()
        assert (reader.returncode, errors) == (0, "")
        print(said)
    alone = tmp_path / "alone"
    assert distributed_toy.main(["run", str(config), "--quiet", "--out", str(alone)]) == 0
    assert rows_without_times(RunFolder(run)) == rows_without_times(RunFolder(alone))
    for stage in ("first", "second"):
        kept = [Checkpoints(path / "checkpoints" / stage, scored=True) for path in (run, alone)]
        assert kept[0].steps() == kept[1].steps()
        assert kept[0].best() == kept[1].best()
