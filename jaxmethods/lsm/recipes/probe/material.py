"""Labelled clips, each heard once by a frozen Whisper: frames of its own length, and summaries.

A clip's summary is the mean and the maximum over its own frames; beside it stands that over all
frames of the window, padding included, which shows whether lengths matter.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.data import audio
from jaxmethods.data.audio import AudioError
from jaxmethods.data.log_mel import frame_lengths, log_mel
from jaxmethods.errors import DataError
from jaxmethods.lsm.config import ProbeRun as Run
from jaxmethods.lsm.recipes.manifests import numbered_rows
from jaxmethods.models import whisper
from jaxmethods.stages import Arrays, Compute, Part, Place, Results

STAGE = "heard"
PART = 32
"""Clips of a part that the run folder keeps."""
OWN, ALL = "own", "all"
POOLS = (OWN, ALL)
"""Over which frames a clip is summarized: its own, or all of the window."""


class Clip(NamedTuple):
    """A row of a manifest."""

    reference: str
    folder: Path
    label: str
    group: str
    """Empty without groups."""
    tested: bool
    """Whether it is a row of the second manifest."""


class Heard(NamedTuple):
    """All clips that could be heard, those of training first."""

    clips: tuple[Clip, ...]
    frames: tuple[np.ndarray, ...]
    """[T, C] float16 each, T the clip's own length."""
    own: np.ndarray
    """[N, 2 C] float32: mean and maximum over the clip's own frames."""
    all: np.ndarray
    """[N, 2 C]: over all frames of the window."""
    skipped: int
    """Clips that could not be heard."""


def read_clips(run: Run) -> tuple[Clip, ...]:
    """The rows of both manifests.

    Raises:
        DataError: a manifest that is none, a row without its fields, a label of the test that no
            clip of training has.
        FileError: a manifest that cannot be read.
    """
    train, test = (_rows(run, file, tested) for file, tested in ((run.train, 0), (run.test, 1)))
    check_labels(run, [*train, *test])
    return (*train, *test)


def check_labels(run: Run, clips: Sequence[Clip]) -> None:
    """Raises `DataError` for clips that nothing can be learned from, or judged by.

    It is asked of all rows, and again of those that could be heard.
    """
    known = {one.label for one in clips if not one.tested}
    tested = {one.label for one in clips if one.tested}
    if len(known) < 2:
        raise DataError(f"data {run.train}: expected clips of two labels or more, got {len(known)}")
    if not tested:
        raise DataError(f"data {run.test}: expected a clip that can be heard, got none")
    if tested - known:
        unknown = min(tested - known)
        raise DataError(f"data {run.test}: no clip of {run.train} has the label {unknown!r}")


def _rows(run: Run, file: Path, tested: int) -> list[Clip]:
    fields = ["audio", run.label, *([run.group] if run.group else [])]
    found = []
    for number, row in numbered_rows(file):
        values = [row.get(field) if isinstance(row, dict) else None for field in fields]
        if any(not isinstance(value, str | int) for value in values):
            raise DataError(
                f"data {file}: line {number}: expected an object with the fields "
                f"{', '.join(fields)}, got {json.dumps(row)[:60]}"
            )
        reference, label, *group = map(str, values)
        own = group[0] if group else ""
        found.append(Clip(reference, file.parent, label, own, bool(tested)))
    if not found:
        raise DataError(f"data {file}: holds no clips")
    return found


def check_files(clips: Sequence[Clip]) -> None:
    """Raises `AudioError` for the first clip whose file is missing."""
    for path in dict.fromkeys(audio.parse_segment(one.reference, one.folder).path for one in clips):
        if not path.is_file():
            raise AudioError(f"audio {path}: no such file")


@lru_cache(maxsize=1)
def read_encoder(path: Path) -> whisper.Loaded:
    """The encoder, read once. Raises `HubError` for a folder that can't be used."""
    return whisper.load(path, encoder_only=True)


@partial(jax.jit, static_argnums=1)
def listen(
    params: Any, config: whisper.WhisperConfig, clips: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hears clips.

    Args:
        params: of the encoder.
        config: of the model; static.
        clips: [B, n] int16.
        lengths: [B], how many frames are a clip's own.

    Returns:
        Frames [B, T, C], and summaries [B, 2 C] of own and of all frames.
    """
    frames = whisper.encode(params, config.encoder, log_mel(clips, config.features)).last
    there = (jnp.arange(frames.shape[1]) < lengths[:, None])[..., None]  # [B, T, 1]
    mean = jnp.sum(jnp.where(there, frames, 0), axis=1) / jnp.maximum(lengths, 1)[:, None]
    largest = jnp.max(jnp.where(there, frames, -jnp.inf), axis=1)
    own = jnp.concatenate([mean, largest], axis=1)
    return frames, own, jnp.concatenate([frames.mean(1), frames.max(1)], axis=1)


def heard_stage(run: Run, clips: Sequence[Clip]) -> Compute:
    """Every clip is heard once; some of them are a part, so that a stopped run goes on."""

    def parts(results: Results, place: Place) -> list[Part]:
        del results, place
        starts = range(0, len(clips), PART)
        return [
            Part(f"{start:06d}", partial(hear, run, clips[start : start + PART]))
            for start in starts
        ]

    def finish(found: Sequence[Arrays]) -> Heard:
        there = np.concatenate([part["heard"] for part in found])
        frames = [
            clip
            for part in found
            for clip in np.split(part["frames"], np.cumsum(part["lengths"])[:-1])
        ]
        own, everything = (np.concatenate([part[pool] for part in found])[there] for pool in POOLS)
        return Heard(
            tuple(one for one, kept in zip(clips, there, strict=True) if kept),
            tuple(one for one, kept in zip(frames, there, strict=True) if kept),
            own,
            everything,
            int((~there).sum()),
        )

    return Compute(
        STAGE, parts, finish, lambda found: {"clips": len(found.clips), "skipped": found.skipped}
    )


def hear(run: Run, clips: Sequence[Clip]) -> Arrays:
    """Frames and summaries of some clips.

    Args:
        run: the config.
        clips: at least one.

    Returns:
        `frames` of all clips behind each other [sum of T, C] float16, their `lengths` [n], the
        summaries `own` and `all` [n, 2 C] float32, and which could be `heard`.

    Raises:
        AudioError: a clip can't be heard and `skip_unreadable` is false.
    """
    loaded = read_encoder(run.model)
    config = loaded.config
    waves, heard = [], []
    for one in clips:
        try:
            waves.append(audio.load(one.reference, folder=one.folder))
        except AudioError:
            if not run.skip_unreadable:
                raise
            waves.append(np.zeros(1, np.float32))
            heard.append(False)
        else:
            heard.append(True)
    cut = [audio.pad_or_trim(wave, config.features.n_samples) for wave in waves]
    lengths = np.asarray(frame_lengths(np.asarray([n for _, n in cut]), config.features)[1])
    frames, own, everything = [], [], []
    for start in range(0, len(clips), run.batch):
        given = np.stack([audio.to_int16(clip) for clip, _ in cut[start : start + run.batch]])
        count = len(given)
        # One shape, hence one program: the last batch is filled with silence.
        room = (0, run.batch - count)
        given = np.pad(given, (room, (0, 0)))
        sizes = np.pad(lengths[start : start + run.batch], room, constant_values=1)
        found = jax.device_get(listen(loaded.params["encoder"], config, given, sizes))
        frames += [
            row[:n].astype(np.float16) for row, n in zip(found[0], sizes[:count], strict=False)
        ]
        own.append(found[1][:count])
        everything.append(found[2][:count])
    return {
        "frames": np.concatenate(frames),
        "lengths": lengths,
        OWN: np.concatenate(own),
        ALL: np.concatenate(everything),
        "heard": np.asarray(heard),
    }
