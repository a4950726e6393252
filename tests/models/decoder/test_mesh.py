"""A decoder gives one result on any mesh of the suite's eight devices."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmethods.models import decoder
from jaxmethods.models.decoder.generation import generate
from tests.models.decoder.decoders import LLAMA, random_ids, random_params

CONFIG = LLAMA.model_copy(update={"heads": 8, "kv_heads": 2, "mlp_width": 48, "vocab_size": 40})
AXES = ("data", "fsdp", "tensor")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "model"
    decoder.save(path, CONFIG, random_params(CONFIG), largest_file=20_000)
    return path


def mesh_of(*sizes):
    return Mesh(np.array(jax.devices()[: np.prod(sizes)]).reshape(sizes), AXES)


def run(params, ids):
    @jax.jit
    def both(params, ids):
        outputs = decoder.forward(params, CONFIG, ids, taps=("head_norms",))
        return outputs.logits, outputs.head_norms, generate(params, CONFIG, ids, new_tokens=3)

    return both(params, ids)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(4, 1, 2), (1, 2, 4)])
def test_a_mesh_gives_the_numbers_of_one_device(folder, sizes):
    mesh = mesh_of(*sizes)
    ids = random_ids(CONFIG, 8, 6)
    logits, norms, continued = run(decoder.load(folder)[1], ids)
    config, params = decoder.load(folder, mesh=mesh)
    assert config == CONFIG
    up = params["layers"]["mlp"]["up"]["kernel"]
    assert up.addressable_shards[0].data.size * sizes[1] * sizes[2] == up.size
    split = sizes[2] if CONFIG.kv_heads % sizes[2] == 0 else 1
    key = params["layers"]["attention"]["key"]["kernel"]
    assert key.addressable_shards[0].data.size * sizes[1] * split == key.size
    sharded = jax.device_put(ids, NamedSharding(mesh, PartitionSpec("data")))
    many = run(params, sharded)
    np.testing.assert_allclose(many[0], logits, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(many[1], norms, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(many[2].tokens, continued.tokens)
