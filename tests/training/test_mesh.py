"""One result on any mesh of the suite's eight devices."""

from __future__ import annotations

import functools
import signal

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxmethods.config import MeshConfig
from jaxmethods.devices.sharding import make_mesh, shardings
from jaxmethods.layout import Rule
from jaxmethods.method import Method
from jaxmethods.models.initializers import orthogonal
from jaxmethods.records.run_folder import RunFolder
from jaxmethods.training import loop, runner
from jaxmethods.training.stopping import Interrupted
from tests.training import toy
from tests.training.test_loop import StopAt, key_data, rows_without_times

BY_DATA = (Rule("weights", ("data",)),)
BY_MODEL = (Rule("weights", ("fsdp", "tensor")),)
MESHES = {
    "data=8": (MeshConfig(data=8), 1, BY_DATA),
    "data=8, a seed each": (MeshConfig(data=-1), 8, BY_DATA),
    "data=4, fsdp=2": (MeshConfig(data=4, fsdp=2), 1, (Rule("weights", ("data", "fsdp")),)),
    "data=2, fsdp=2, tensor=2": (MeshConfig(data=-1, fsdp=2, tensor=2), 2, BY_MODEL),
}


def run(path, mesh, seeds, rules, resume=False, progress=None):
    recipe = toy.recipe(7, 4, shape=(8, 8), rules=rules)
    config = toy.config(mesh=mesh, seeds=seeds)
    return runner.run(recipe, config, RunFolder(path), resume, progress)


def stop_and_resume(path, first, then, *how):
    with pytest.raises(Interrupted, match="saved at step 4 of 7"):
        run(path, first, *how, progress=StopAt(4, signal.SIGTERM))
    return run(path, then, *how, resume=True)


def assert_close(left, right):
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(key_data(one), key_data(other), rtol=1e-5, atol=1e-5)


def assert_rows_close(left, right):
    left, right = rows_without_times(RunFolder(left)), rows_without_times(RunFolder(right))
    assert [row["step"] for row in left] == [row["step"] for row in right]
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        numbers = [name for name in one if name != "stage"]
        for name in numbers:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-5)


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory):
    """Folder and final states of the run of so many seeds on one device."""

    @functools.cache
    def of(seeds):
        path = tmp_path_factory.mktemp("one") / "run"
        return path, run(path, MeshConfig(), seeds, ())

    return of


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_stopped_and_resumed_gives_the_results_of_one_device(tmp_path, on_one_device, name):
    mesh, seeds, rules = MESHES[name]
    many = stop_and_resume(tmp_path / "run", mesh, mesh, seeds, rules)
    path, one = on_one_device(seeds)
    assert_close(many, one)
    assert_rows_close(tmp_path / "run", path)
    for state in many.values():
        assert state.weights.addressable_shards[0].data.size * 8 == state.weights.size


@pytest.mark.slow
@pytest.mark.parametrize("back", [False, True], ids=["8 then 1", "1 then 8"])
def test_a_checkpoint_moves_between_eight_devices_and_one(tmp_path, on_one_device, back):
    mesh, seeds, rules = MESHES["data=2, fsdp=2, tensor=2"]
    first, then = (MeshConfig(), mesh) if back else (mesh, MeshConfig())
    resumed = stop_and_resume(tmp_path / "run", first, then, seeds, rules)
    path, one = on_one_device(seeds)
    assert_close(resumed, one)
    assert_rows_close(tmp_path / "run", path)


@pytest.mark.slow
def test_initial_weights_may_be_orthogonal_on_every_device():
    def init(key, batch):
        # Layers that are independent of each other are factorized side by side.
        layers = jax.random.split(key, (16, 4))
        return [jax.vmap(lambda key: orthogonal()(key, (64, 64)))(keys) for keys in layers]

    mesh = make_mesh(MeshConfig(data=8))
    keys, whole = jax.random.split(jax.random.key(0), 8), NamedSharding(mesh, PartitionSpec())
    by_seed = NamedSharding(mesh, PartitionSpec("data"))
    method = Method(init, lambda state, batch: (state, {}))
    layers = loop.init_state(
        method,
        jax.device_put(keys, whole),
        None,
        lambda state: jax.tree.map(lambda _: by_seed, state),
    )
    assert layers[0].sharding == by_seed
    weights = np.stack(layers)
    np.testing.assert_allclose(
        weights @ weights.swapaxes(-1, -2), np.broadcast_to(np.eye(64), weights.shape), atol=1e-5
    )


@pytest.mark.parametrize(
    ("seeds", "shared", "own"),
    [
        (1, (("fsdp", "data"), None), (None, ("fsdp", "data"), None)),
        (2, ("fsdp", None), ("data", "fsdp", None)),
        (3, (("fsdp", "data"), None), (None, ("fsdp", "data"), None)),
    ],
)
def test_a_batch_is_split_by_seeds_first_and_then_by_its_rules(seeds, shared, own):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2))
    batch = {"shared": np.zeros((4, 3)), "own": np.zeros((seeds, 4, 3)), "nothing": None}
    batch["few"], batch["unnamed"] = np.zeros((6, 3)), np.zeros(4)
    rules = (Rule("^(shared|own|few)", (("fsdp", "data"), "tensor")),)
    axes = {"shared": None, "own": 0, "nothing": None, "few": None, "unnamed": None}
    found = shardings(batch, rules, seeds, mesh, axes)
    expected = {"shared": shared, "own": own, "few": ("fsdp", None), "unnamed": (None,)}
    assert found.pop("nothing") is None
    for name, spec in expected.items():
        place = NamedSharding(mesh, PartitionSpec(*spec))
        assert found[name].is_equivalent_to(place, batch[name].ndim)
