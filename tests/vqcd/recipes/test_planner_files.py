"""A run's planner opens again and acts as the run's own did."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest

from jaxmethods.data.offline import DataError
from jaxmethods.vqcd.recipes import planner_files
from jaxmethods.vqcd.recipes.learners import Learner
from jaxmethods.vqcd.recipes.scoring import _weights


@pytest.fixture(scope="module")
def planner(finished):
    return planner_files.load_planner(finished[0].folder / "planner-seed3")


def test_the_weights_are_those_of_the_run(finished, planner):
    run, _ = finished
    learner = Learner(run.config, run.config.learners[0])
    for number, task in enumerate(("pendulum", "point")):
        own = _weights(learner.planner, learner.bank(run.results, 2), np.int32(number))
        for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(planner.weights(task)), strict=True):
            np.testing.assert_array_equal(a[0], b)


def test_it_acts_in_every_task(planner):
    for task, (states, actions) in {"pendulum": (3, 1), "point": (6, 2)}.items():
        observations = np.ones((2, states), np.float32)
        acted, memory = planner.act(task, observations, planner.begin(2), jax.random.key(0))
        assert acted.shape == (2, actions)
        assert np.all(np.abs(acted) < 1)
        assert int(memory.age) == 0


def test_unknown_tasks_and_other_sizes_are_refused(planner):
    with pytest.raises(ValueError, match="unknown task 'pont' \\(did you mean 'point'"):
        planner.weights("pont")
    with pytest.raises(ValueError, match="expected \\[E, 6\\], got \\[2, 3\\]"):
        planner.act("point", np.ones((2, 3)), planner.begin(2), jax.random.key(0))


def test_a_damaged_planner_is_refused(finished, tmp_path):
    folder = tmp_path / "planner"
    shutil.copytree(finished[0].folder / "planner-seed3", folder)
    content = bytearray((folder / "planner.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "planner.npz").write_bytes(content)
    with pytest.raises(DataError, match="is not that of the card"):
        planner_files.load_planner(folder)
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"version": 99}))
    with pytest.raises(DataError, match="version 99"):
        planner_files.load_planner(folder)
    (folder / "card.json").unlink()
    with pytest.raises(DataError, match=r"its card\.json is missing"):
        planner_files.load_planner(folder)
