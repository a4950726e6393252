"""Norms of a mesh are those of one device."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxmethods.models import decoder
from jaxmethods.novo.score import score
from tests.models.decoder.decoders import LLAMA, random_params
from tests.novo.test_norms import random_sequences

CONFIG = LLAMA.model_copy(update={"heads": 8, "kv_heads": 4, "mlp_width": 48, "vocab_size": 40})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "model"
    decoder.save(path, CONFIG, random_params(CONFIG))
    return path


@pytest.fixture(scope="module")
def one_device(folder):
    _, params = decoder.load(folder)
    return score(params, CONFIG, random_sequences(questions=8), batch_tokens=128, likelihood=True)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 1), (1, 2), (2, 4)])
def test_norms_of_a_mesh_are_those_of_one_device(folder, one_device, sizes):
    devices = np.array(jax.devices()[: np.prod(sizes)]).reshape(sizes)
    mesh = Mesh(devices, ("data", "tensor"))
    _, params = decoder.load(folder, mesh=mesh)
    sequences = random_sequences(questions=8)
    many = score(params, CONFIG, sequences, batch_tokens=128, likelihood=True, mesh=mesh)
    np.testing.assert_array_equal(many.mask, one_device.mask)
    np.testing.assert_allclose(many.norms, one_device.norms, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(many.likelihood, one_device.likelihood, rtol=2e-5, atol=2e-5)
