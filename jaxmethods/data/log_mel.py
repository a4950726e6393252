r"""Whisper's features of speech: log-mel energies of 25 ms frames, a hundred a second.

Samples x at 16 kHz are mirrored by 200 at both ends and cut into frames of n = 400 at a hop of 160,
the last of which is dropped. With the periodic Hann window w and mel filters M,

    e = M^T |DFT(w x)|^2,    y = (max(log10 max(e, 1e-10), max_clip log10 e - 8) + 4) / 4

where the maximum is over the whole clip, never over a batch (Radford et al., arXiv 2212.04356,
section 2.2; the numbers are those of the published feature extractor). Silence gives -1.5.
"""

from __future__ import annotations

import math
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import PositiveInt

from jaxmethods.config import Config
from jaxmethods.numerics.compiled import compiled

LINEAR_STEP, LOG_START = 200 / 3, 1000.0
LOG_STEP = math.log(6.4) / 27
"""Slaney's mel scale: linear below 1 kHz, 27 steps for every factor of 6.4 above."""
FLOOR, RANGE = 1e-10, 8.0
INT16 = 32768.0


class LogMelConfig(Config):
    """Sizes of the features; a window of another length than 30 s is for models of our own."""

    n_mels: PositiveInt = 80
    """128 for large-v3."""
    n_samples: PositiveInt = 480_000
    """Samples of a clip, padded with zeros."""
    n_fft: PositiveInt = 400
    hop: PositiveInt = 160
    rate: PositiveInt = 16_000
    """Samples a second."""

    @property
    def frames(self) -> int:
        """Frames of a clip."""
        return self.n_samples // self.hop


WHISPER = LogMelConfig()


@lru_cache(maxsize=8)
def mel_filters(n_mels: int, n_fft: int = 400, rate: int = 16_000) -> np.ndarray:
    """Triangles on Slaney's mel scale, each of area one in Hz.

    Args:
        n_mels: M, the number of filters, from 0 Hz to half the rate.
        n_fft: length of the DFT.
        rate: samples a second.

    Returns:
        [n_fft / 2 + 1, M] float32.
    """
    frequencies = np.arange(n_fft // 2 + 1) * (rate / n_fft)
    edges = _hertz(np.linspace(0.0, _mel(rate / 2), n_mels + 2))  # [M + 2]
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (frequencies[:, None] - low) / (middle - low)
    falling = (high - frequencies[:, None]) / (high - middle)
    triangles = np.maximum(0.0, np.minimum(rising, falling)) * 2.0 / (high - low)
    return triangles.astype(np.float32)


@compiled("config")
def log_mel(waves: jax.Array, config: LogMelConfig = WHISPER) -> jax.Array:
    """Log-mel features of clips, as one program.

    Args:
        waves: [..., n_samples] float in [-1, 1], or int16, padded with zeros.
        config: sizes; static.

    Returns:
        [..., n_mels, n_samples / hop] float32.

    Raises:
        ValueError: clips of another length than the config's, or integers of another type, whose
            full scale isn't that of int16.
    """
    if waves.shape[-1] != config.n_samples:
        raise ValueError(
            f"waves: expected clips of {config.n_samples} samples (see audio.pad_or_trim), "
            f"got {waves.shape[-1]}"
        )
    if not jnp.issubdtype(waves.dtype, jnp.floating) and waves.dtype != jnp.int16:
        raise ValueError(f"waves: expected floats in [-1, 1] or int16, got {waves.dtype}")
    scale = 1 / INT16 if waves.dtype == jnp.int16 else 1.0
    framed = _frames(waves.astype(jnp.float32) * scale, config)  # [..., T, n_fft]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(config.n_fft) / config.n_fft)
    # A DFT as a product of matrices would lose accuracy near the floor.
    spectrum = jnp.fft.rfft(framed * hann.astype(np.float32))  # [..., T, n_fft / 2 + 1]
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    filters = mel_filters(config.n_mels, config.n_fft, config.rate)
    energy = jnp.matmul(power, filters, precision=jax.lax.Precision.HIGHEST)  # [..., T, M]
    logs = jnp.log10(jnp.maximum(energy, FLOOR))
    logs = jnp.maximum(logs, jnp.max(logs, axis=(-2, -1), keepdims=True) - RANGE)
    return jnp.swapaxes((logs + 4.0) / 4.0, -1, -2)  # [..., M, T]


def frame_lengths(
    samples: jax.Array | np.ndarray | int, config: LogMelConfig = WHISPER
) -> tuple[jax.Array, jax.Array]:
    """How many frames of features and of Whisper's encoder belong to clips.

    Args:
        samples: [...] int, before padding; what is longer than a clip is cut.
        config: sizes; static.

    Returns:
        Mel frames and encoder frames (a half, rounded up), [...] int32 each.
    """
    samples = jnp.minimum(jnp.asarray(samples, jnp.int32), config.n_samples)
    mel = (samples + config.hop - 1) // config.hop
    return mel, (mel - 1) // 2 + 1


def _frames(waves: jax.Array, config: LogMelConfig) -> jax.Array:
    """[..., N] -> overlapping frames [..., T, n_fft], from blocks that hop and frame share."""
    side = config.n_fft // 2
    padded = jnp.pad(waves, [(0, 0)] * (waves.ndim - 1) + [(side, side)], mode="reflect")
    block = math.gcd(config.n_fft, config.hop)
    whole = padded.shape[-1] // block
    blocks = padded[..., : whole * block].reshape(*waves.shape[:-1], whole, block)
    step, last = config.hop // block, (config.frames - 1) * (config.hop // block) + 1
    parts = [blocks[..., j : j + last : step, :] for j in range(config.n_fft // block)]
    return jnp.concatenate(parts, axis=-1)  # [..., T, n_fft]


def _mel(hertz: float) -> float:
    above = LOG_START / LINEAR_STEP + math.log(max(hertz, LOG_START) / LOG_START) / LOG_STEP
    return hertz / LINEAR_STEP if hertz < LOG_START else above


def _hertz(mel: np.ndarray) -> np.ndarray:
    start = LOG_START / LINEAR_STEP
    return np.where(
        mel < start,
        mel * LINEAR_STEP,
        LOG_START * np.exp(LOG_STEP * (np.maximum(mel, start) - start)),
    )
