"""Pieces of a decoder layer against their formulas in NumPy."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxmethods.models.decoder import layer as decoder_layer
from tests.models.decoder.decoders import CONFIGS, random_params


@pytest.mark.parametrize(
    ("project", "name"),
    [
        (decoder_layer.project_queries, "query"),
        (lambda *given: decoder_layer.project_keys(*given)[0], "key"),
    ],
)
def test_queries_and_keys_have_norms_of_their_own(project, name):
    config = CONFIGS["qwen3"]
    layer = decoder_layer.layer_of(random_params(config)["layers"], 1)["attention"]
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, 5, config.width)))
    heads = (x @ layer[name]["kernel"]).reshape(2, 5, -1, config.head_dim)
    root = np.sqrt(np.mean(heads**2, axis=-1, keepdims=True) + config.norm_eps)
    expected = heads / root * layer[f"{name}_norm"]["scale"]
    np.testing.assert_allclose(project(config, layer, x, None), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms_divide_by_the_root_of_the_mean_square(kind):
    config = CONFIGS["llama"].model_copy(update={"norm": kind, "norm_eps": 0.1})
    x = np.asarray(2 + jax.random.normal(jax.random.key(0), (3, 7)))
    params = {"scale": np.linspace(1, 2, 7, dtype=np.float32)}
    if kind == "layer":
        params["bias"] = np.linspace(-1, 1, 7, dtype=np.float32)
    centered = x - x.mean(-1, keepdims=True) if kind == "layer" else x
    expected = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 0.1) * params["scale"]
    found = decoder_layer.normalize(config, params, x, x.dtype)
    np.testing.assert_allclose(found, expected + params.get("bias", 0), atol=1e-5)
