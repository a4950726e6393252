"""One training run of a team on any mesh of the suite's eight devices."""

from __future__ import annotations

import signal

import jax
import numpy as np
import pytest

import jaxmethods
from jaxmethods.commformer.recipes import train as run
from jaxmethods.config import MeshConfig, validate
from jaxmethods.records.run_folder import RunFolder
from jaxmethods.training import runner
from jaxmethods.training.stopping import Interrupted
from tests.commformer.small import SMALL
from tests.training.test_loop import StopAt, key_data, rows_without_times


def train(path, mesh, resume=False, progress=None):
    config = validate(run.Run, SMALL | {"mesh": mesh.model_dump()}, "test")
    runner.run(run.recipe(config), config, RunFolder(path), resume, progress)
    return jaxmethods.load_run(path).state("train")


@pytest.mark.slow
def test_a_team_stopped_on_a_mesh_and_resumed_on_another_is_that_of_one_device(tmp_path):
    path, other = tmp_path / "many", tmp_path / "one"
    with pytest.raises(Interrupted, match="saved at step 2 of 4"):
        train(path, MeshConfig(data=8), progress=StopAt(2, signal.SIGTERM))
    many = train(path, MeshConfig(data=4, fsdp=2), resume=True)
    one = train(other, MeshConfig())
    assert many.timestep.observation.agents_view.sharding.spec[:2] == (None, "data")
    for left, right in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(key_data(left), key_data(right), rtol=1e-3, atol=1e-4)
    rows = [rows_without_times(RunFolder(folder)) for folder in (path, other)]
    for mine, theirs in zip(*rows, strict=True):
        assert mine.keys() == theirs.keys()
        numbers = [name for name in mine if name != "stage"]
        left, right = ([row[name] for name in numbers] for row in (mine, theirs))
        np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-4)
