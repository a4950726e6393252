"""Both sides of the speech benchmarks do the same work; every row exists."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from benchmarks import lsm as bench
from benchmarks.harness import Settings
from jaxmethods.data.log_mel import LogMelConfig, log_mel
from jaxmethods.models import whisper

SIZES = bench.TRIAL


@pytest.mark.slow
def test_the_encoder_is_that_of_transformers():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    params = jax.tree.map(
        lambda leaf: 5 * leaf, whisper.init_encoder(jax.random.key(0), SIZES.encoder)
    )
    x = jax.random.normal(jax.random.key(1), (1, 8, 40))
    ours = whisper.encode(params, SIZES.encoder, x).last
    theirs = bench.torch_encoder(params, x, SIZES, "cpu")().numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.slow
def test_the_features_are_those_of_transformers():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    waves = 0.1 * np.random.default_rng(0).standard_normal((1, 480_000)).astype(np.float32)
    theirs = bench.torch_features(waves, SIZES, "cpu")().input_features
    ours = log_mel(waves, LogMelConfig(n_mels=SIZES.encoder.n_mels))
    np.testing.assert_allclose(ours, theirs, atol=5e-4)


@pytest.mark.slow
def test_a_step_is_measured():
    found = list(bench.steps(Settings(3, 0.1, 1), SIZES))
    assert [row.name for row in found] == ["lsm/step_cached", "lsm/step"]
    assert found[0].sizes == {"batch": 2, "tokens": 14}
