"""Every recording, heard once: frames of the frozen encoder, of its true length.

What can't be heard is an error of one line, or counted by its reason where the config says so. A
part is a few recordings, so that a run that is stopped goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.data import audio
from jaxmethods.data.audio import AudioError
from jaxmethods.data.log_mel import frame_lengths, log_mel
from jaxmethods.errors import DataError
from jaxmethods.lsm.recipes.recordings.models import Models
from jaxmethods.lsm.recipes.recordings.rows import SPLITS, Row, Rows
from jaxmethods.models.whisper.config import EncoderConfig
from jaxmethods.models.whisper.encoder import encode
from jaxmethods.numerics.compiled import compiled
from jaxmethods.stages import Arrays, Compute, Part, Place, Results

HEARD = "heard"
TOGETHER = 16
"""Recordings of a part."""
REASONS = ("", "audio that can't be heard", "longer than data.longest")
HEARS, UNREADABLE, TOO_LONG = range(3)
PLAYED = 4
"""Recordings that the report plays."""


class Heard(NamedTuple):
    """The recordings of a split that can be used."""

    frames: np.ndarray
    """[C, T, D] float16, zeros behind a recording's end."""
    lengths: np.ndarray
    """[C] int32: frames of each."""
    rows: np.ndarray
    """[C] int32: which rows of the split they are."""
    seconds: float
    dropped: Counter[str]
    """Why others can't be used."""
    waves: tuple[np.ndarray, ...]
    """[n] int16: the first of them, to listen to."""


def heard_stage(models: Models, rows: Rows) -> Compute:
    """Frames of all recordings.

    Args:
        models: whose encoder hears.
        rows: what is heard.

    Returns:
        A stage whose result is a `Heard` for each split.
    """
    chunks = [
        (split, start) for split in SPLITS for start in range(0, len(rows.splits[split]), TOGETHER)
    ]

    def parts(results: Results, place: Place) -> list[Part]:
        del results, place
        return [
            Part(
                f"{split}-{start:06d}",
                partial(hear, models, rows.splits[split][start : start + TOGETHER], start == 0),
            )
            for split, start in chunks
        ]

    def finish(found: Sequence[Arrays]) -> dict[str, Heard]:
        return {
            split: joined(
                split,
                [part for part, own in zip(found, chunks, strict=True) if own[0] == split],
                models.encoder.width,
            )
            for split in SPLITS
        }

    return Compute(HEARD, parts, finish, metrics)


def metrics(found: dict[str, Heard]) -> dict[str, Any]:
    """How much was heard, and how many recordings were dropped."""
    values: dict[str, Any] = {}
    for split, own in found.items():
        values[f"{split}_recordings"] = len(own.lengths)
        values[f"{split}_dropped"] = own.dropped.total()
        values[f"{split}_seconds"] = own.seconds
    return values


def hear(models: Models, rows: Sequence[Row], plays: bool) -> Arrays:
    """Frames of a few recordings, one behind the other.

    Args:
        models: whose encoder hears.
        rows: the recordings.
        plays: whether the samples of the first are kept as well.

    Returns:
        `frames` [sum of lengths, D], `lengths`, `reasons` and `samples` [n], and `wave_I`.
    """
    size = models.encoder.features.n_samples
    waves: list[np.ndarray] = []
    reasons: list[int] = []
    for row in rows:
        wave, reason = _load(models, row)
        waves.append(wave)
        reasons.append(reason)
    cut = [audio.pieces(wave, size) if len(wave) else None for wave in waves]
    clips = [clip for own in cut if own is not None for clip in own[0]]
    samples = [count for own in cut if own is not None for count in own[1]]
    frames, lengths = encoded(models, clips, samples)
    pieces = iter(lengths)
    each = [0 if own is None else sum(next(pieces) for _ in own[0]) for own in cut]
    played = [wave for wave in waves if len(wave)][: PLAYED if plays else 0]
    return {
        "frames": frames,
        "lengths": np.asarray(each, np.int32),
        "reasons": np.asarray(reasons, np.int32),
        "samples": np.asarray([len(wave) for wave in waves], np.int64),
        **{f"wave_{number}": audio.to_int16(wave) for number, wave in enumerate(played)},
    }


def _load(models: Models, row: Row) -> tuple[np.ndarray, int]:
    """Samples and why there are none, if there are none."""
    data = models.run.data
    nothing = np.zeros(0, np.float32)
    try:
        wave = audio.load(row.audio, folder=row.folder)
    except AudioError:
        if not data.skip_unusable:
            raise
        return nothing, UNREADABLE
    if len(wave) > data.longest * audio.RATE:
        if not data.skip_unusable:
            raise AudioError(
                f"audio {row.audio}: lasts {len(wave) / audio.RATE:.1f} s, more than the "
                f"{data.longest:g} s of data.longest; raise it, or count such recordings and go on "
                "with data.skip_unusable"
            )
        return nothing, TOO_LONG
    return wave, HEARS


def encoded(
    models: Models, clips: Sequence[np.ndarray] | np.ndarray, samples: Sequence[int] | np.ndarray
) -> tuple[np.ndarray, list[int]]:
    """Frames of pieces, [sum of lengths, D] float16, and the length of each piece."""
    config, size = models.encoder, models.run.speech.batch
    lengths = np.asarray(frame_lengths(np.asarray(samples, np.int64), config.features)[1])
    params = models.read_encoder()
    found = [np.zeros((0, config.width), np.float16)]
    for start in range(0, len(clips), size):
        own = np.stack([audio.to_int16(clip) for clip in clips[start : start + size]])
        full = np.pad(own, ((0, size - len(own)), (0, 0)))  # one shape, one program
        states = np.asarray(jax.device_get(_hear(params, config, full)))
        counts = lengths[start : start + len(own)]
        found += [
            state[:count].astype(np.float16)
            for state, count in zip(states[: len(own)], counts, strict=True)
        ]
    return np.concatenate(found), lengths.tolist()


@compiled("config")
def _hear(params: Any, config: EncoderConfig, clips: np.ndarray) -> jax.Array:
    """Clips [B, n] int16 -> frames [B, T, D] float32."""
    features = log_mel(jnp.asarray(clips), config.features)
    return encode(params, config, features).last.astype(jnp.float32)


def joined(split: str, parts: Sequence[Arrays], width: int) -> Heard:
    """The parts of a split as one.

    Raises:
        DataError: nothing could be heard.
    """
    lengths = np.concatenate([part["lengths"] for part in parts])
    reasons = np.concatenate([part["reasons"] for part in parts])
    used = np.flatnonzero(lengths)
    if not len(used):
        raise DataError(f"data: none of the {len(lengths)} {split} recordings can be heard")
    flat = np.concatenate([part["frames"] for part in parts])
    frames = np.zeros((len(used), int(lengths.max()), width), np.float16)
    ends = np.cumsum(lengths[used])
    for place, (end, length) in enumerate(zip(ends, lengths[used], strict=True)):
        frames[place, :length] = flat[end - length : end]
    seconds = float(sum(part["samples"].sum() for part in parts)) / audio.RATE
    dropped = Counter(REASONS[reason] for reason in reasons[reasons > 0])
    names = sorted(name for name in parts[0] if name.startswith("wave_"))
    waves = tuple(parts[0][name] for name in names)
    return Heard(
        frames, lengths[used].astype(np.int32), used.astype(np.int32), seconds, dropped, waves
    )
