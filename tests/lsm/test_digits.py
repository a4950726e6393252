"""Real clips of less than a second, for which the published windows would have no frame."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.data import audio
from jaxmethods.data.log_mel import LogMelConfig, frame_lengths, log_mel
from jaxmethods.lsm import connect, init_connector
from tests.lsm import small
from tests.programs import weights

SPEECH = Path(os.environ.get("JAXMETHODS_SHARED", "")) / "data" / "speech"
FEATURES = LogMelConfig(n_samples=3 * 16_000)
AT_ONCE = 50


@pytest.mark.slow
@pytest.mark.skipif(not (SPEECH / "digits").is_dir(), reason="JAXMETHODS_SHARED is not set")
@pytest.mark.parametrize("policy", ["per_clip", "fixed", "reference"])
def test_all_digits_become_finite_tokens(policy):
    pytest.importorskip("soundfile")
    config = small.CONNECTOR.model_copy(update={"policy": policy})
    params = weights(init_connector, config, FEATURES.n_mels, 8)

    @jax.jit
    def program(waves, samples):
        frames = jnp.swapaxes(log_mel(waves, FEATURES), 1, 2)[:, ::2]  # as many as an encoder's
        frames = frames[:, :45] if policy == "reference" else frames
        lengths = jnp.minimum(frame_lengths(samples, FEATURES)[1], frames.shape[1])
        return connect(params, config, frames, lengths)

    files = [SPEECH / f"digits_{split}.jsonl" for split in ("train", "dev")]
    rows = [json.loads(line) for file in files for line in file.open()]
    assert len(rows) == 1250
    for start in range(0, len(rows), AT_ONCE):
        clips = [audio.load(row["audio"], folder=SPEECH) for row in rows[start : start + AT_ONCE]]
        waves = np.stack([audio.pad_or_trim(clip, FEATURES.n_samples)[0] for clip in clips])
        speech = program(waves, np.asarray([len(clip) for clip in clips]))
        assert jnp.all(jnp.isfinite(speech.tokens))
        assert jnp.all(speech.mask.any(axis=1))
