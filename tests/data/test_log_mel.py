"""Log-mel features: loudness, padding, batches, other sizes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.data.log_mel import LogMelConfig, frame_lengths, log_mel, mel_filters

SECOND = LogMelConfig(n_mels=20, n_samples=16_000)


def waves(clips=2):
    return 0.1 * np.random.default_rng(0).standard_normal((clips, 16_000)).astype(np.float32)


def test_a_batch_is_its_clips():
    together = log_mel(waves(3), SECOND)
    for clip, wave in zip(together, waves(3), strict=True):
        np.testing.assert_allclose(log_mel(wave, SECOND), clip, atol=1e-6)


def test_the_floor_is_each_clips_own():
    loud, soft = 100 * waves(1)[0], waves(1)[0] * (np.arange(16_000) < 8_000)
    together = log_mel(jnp.stack([loud, soft]), SECOND)
    np.testing.assert_allclose(together[1], log_mel(soft, SECOND), atol=1e-6)


def test_a_louder_clip_is_shifted():
    wave = waves(1)[0]
    shift = log_mel(10 * wave, SECOND) - log_mel(wave, SECOND)
    np.testing.assert_allclose(shift, np.log10(10) / 2, atol=1e-5)


def test_integers_are_samples_of_16_bits():
    numbers = np.round(waves(1)[0] * 32768).astype(np.int16)
    wave = numbers.astype(np.float32) / 32768
    np.testing.assert_allclose(log_mel(numbers, SECOND), log_mel(wave, SECOND), atol=1e-6)


def test_a_tone_is_in_its_filter():
    wave = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    strongest = jnp.argmax(log_mel(wave, SECOND)[:, 50])
    assert strongest == np.argmax(mel_filters(20)[25])  # 1000 Hz is the 25th of 40 Hz bins


def test_a_clip_of_another_length_is_refused():
    with pytest.raises(ValueError, match="waves: expected clips of 16000 samples"):
        log_mel(jnp.zeros(15_999), SECOND)


def test_integers_of_another_width_are_refused():
    """Their full scale is another one: they would be taken for much louder, or softer, sound."""
    for dtype in (np.int32, np.uint8):
        with pytest.raises(ValueError, match="expected floats in \\[-1, 1\\] or int16"):
            log_mel(waves(1).astype(dtype), SECOND)


def test_lengths_are_traced():
    found = jax.jit(frame_lengths)(jnp.asarray([1, 160, 161, 600_000]))
    np.testing.assert_array_equal(found, [[1, 1, 2, 3000], [1, 1, 1, 1500]])
