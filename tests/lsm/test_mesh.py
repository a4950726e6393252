"""Eight devices tune the student of one, and each holds an eighth of the language model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmethods.config import MeshConfig
from jaxmethods.devices.sharding import make_mesh, put, shardings
from jaxmethods.lsm.config import TuneConfig
from jaxmethods.lsm.method import Data, tuner
from jaxmethods.lsm.model import Model
from jaxmethods.lsm.recipes.tuning import RULES
from jaxmethods.models import decoder
from tests.lsm import small
from tests.programs import weights

pytestmark = pytest.mark.slow
LANGUAGE = small.LANGUAGE.model_copy(
    update={"vocab_size": 64, "width": 32, "mlp_width": 128, "layers": 12, "heads": 4}
    | {"kv_heads": 4, "head_dim": 8, "rotary_dim": 8, "tied": False}
)


def compiled(devices):
    """The step on a mesh of so many, its state and its data."""
    method = tuner(
        Model(small.CONNECTOR, LANGUAGE),
        optax.adamw(1e-2, eps=1e-2),  # so that rounding of a gradient near 0 is no whole step
        TuneConfig(batch=2, warmup=0, remat=True),
        small.INPUTS,
    )
    text = small.text(4)
    data = Data(
        small.frames(2).astype(jnp.float16),
        jnp.asarray([60, 31]),
        text,
        jnp.arange(4) % 2,
        jnp.ones(4),
        weights(decoder.init_params, LANGUAGE, seed=1),
    )
    state = jax.eval_shape(method.init, jax.random.key(5), data)
    mesh = make_mesh(MeshConfig(fsdp=devices))
    places = [shardings(tree, RULES, 1, mesh, None) for tree in (state, data)]
    data = put(data, places[1])
    init = jax.jit(method.init, out_shardings=places[0])
    state = init(jax.random.key(5), data)
    step = jax.jit(method.step, donate_argnums=0, out_shardings=(places[0], None))
    return step.lower(state, data).compile(), state, data


@pytest.fixture(scope="module")
def one_and_eight():
    return compiled(1), compiled(8)


def test_eight_devices_tune_the_student_of_one(one_and_eight):
    after = []
    for step, state, data in one_and_eight:
        state = jax.tree.map(jnp.copy, state)
        for _ in range(2):
            state, metrics = step(state, data)
        after.append((state.trained, metrics))
    for one, other in zip(*map(jax.tree.leaves, after), strict=True):
        np.testing.assert_allclose(np.asarray(other), np.asarray(one), rtol=1e-5, atol=2e-6)
    language = after[1][0]["language_model"]
    stacked = [leaf for leaf in jax.tree.leaves(language["layers"]) if leaf.ndim == 3]
    for leaf in (*stacked, language["embed"]["tokens"], language["head"]["kernel"]):
        assert leaf.addressable_shards[0].data.size * 8 == leaf.size


def test_a_device_needs_a_fifth_of_the_memory_at_most(one_and_eight):
    one, eight = (
        found.argument_size_in_bytes + found.temp_size_in_bytes
        for found in (step.memory_analysis() for step, *_ in one_and_eight)
    )
    assert eight <= 0.2 * one
