"""What is wrong with a state_dict is named; what the published code never uses is left out.

That the weights land where they belong is seen in test_golden.py, on every file with a network.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxmethods.commformer import policy
from jaxmethods.commformer.network import CommFormer
from jaxmethods.commformer.recipes.torch_weights import params_from_torch
from tests.commformer.golden_weights import network_of, state_dict
from tests.golden_files import FOLDER, read


@pytest.fixture(scope="module", params=["model_per_agent_head", "model_shared_head"])
def published(request) -> tuple[dict[str, np.ndarray], CommFormer]:
    golden = read(sorted((FOLDER / "commformer").glob(f"{request.param}*.npz"))[0])
    return state_dict(golden), network_of(golden)


def test_the_parameters_are_those_the_network_expects(published):
    state, network = published
    loaded = params_from_torch(state, network.config)["network"]
    channels = state["encoder.obs_encoder.1.weight"].shape[1]
    obs = np.zeros((1, network.n_agents, channels))
    expected = jax.eval_shape(lambda: policy.init(network, jax.random.key(0), obs))
    assert jax.tree.structure(loaded) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(expected), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


def test_every_missing_tensor_is_named(published):
    state, network = published
    for name in state:
        rest = {other: tensor for other, tensor in state.items() if other != name}
        with pytest.raises(ValueError, match=f"tensor '{name}' is missing"):
            params_from_torch(rest, network.config)


@pytest.mark.parametrize(
    "name",
    ["encoder.blocks.0.fc1.weight", "decoder.blocks.0.attn2.in_proj_bias", "decoder.ln.bias"],
)
def test_a_wrong_shape_is_named_with_the_expected_one(published, name):
    state, network = published
    wrong = {**state, name: np.zeros((5, 2, 1))}
    with pytest.raises(ValueError, match=rf"tensor '{name}' has shape \(5, 2, 1\), expected \("):
        params_from_torch(wrong, network.config)


@pytest.mark.parametrize("name", ["decoder.log_std", "encoder.blocks.7.fc1.weight"])
def test_an_unknown_tensor_is_named(published, name):
    state, network = published
    with pytest.raises(ValueError, match=f"tensor '{name}' is unknown"):
        params_from_torch({**state, name: np.zeros(3)}, network.config)


def test_tensors_that_the_published_code_never_uses_are_left_out(published):
    state, network = published
    dead = {
        name: np.zeros(2)
        for name in (
            "encoder.state_encoder.0.weight",
            "encoder.state_encoder.1.bias",
            "decoder.obs_encoder.1.weight",
            "encoder.blocks.0.self_attn.mask",
            "decoder.blocks.0.attn1.mask",
        )
    }
    with_dead = params_from_torch({**state, **dead}, network.config)
    jax.tree.map(np.testing.assert_array_equal, with_dead, params_from_torch(state, network.config))


def test_without_relation_term_its_tensors_are_left_out(published):
    state, network = published
    config = network.config.model_copy(update={"relation": False})
    params = params_from_torch(state, config)["network"]["params"]
    assert "edge_embedding" not in params
    assert "relation" not in params["encoder"]["blocks"]["attention"]
