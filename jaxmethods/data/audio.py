"""Audio files as mono samples of one rate: WAV, FLAC, OGG, MP3, and segments of them.

    wave = audio.load("talk.flac")                  # [n] float32 in [-1, 1], 16 kHz
    wave = audio.load("talk.flac:160000:48000")     # path:start:frames, in the file's own rate
    clips, samples = audio.pieces(wave)             # [P, 480000], [P]

Channels are resampled one by one and then averaged, which is the order of the published pipelines.
What can't be heard is a `AudioError` of one line: no audio, cut off, empty, NaN, a segment past the
end. Files are opened by soundfile and resampled by soxr (extra `speech`); a 16-bit WAV file of the
right rate needs neither.
"""

from __future__ import annotations

import io
import re
import wave as riff
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmethods.data.log_mel import INT16
from jaxmethods.errors import DataError, MissingExtraError, first_line, import_extra

RATE = 16_000
"""Samples a second that speech models hear."""
CLIP = 480_000
"""Samples of 30 s at that rate."""
SEGMENT = re.compile(r"(?P<path>.+):(?P<start>\d+):(?P<frames>\d+)")


class AudioError(DataError):
    """Audio that cannot be used; the message is one line."""


class Segment(NamedTuple):
    """A file, or a part of it."""

    path: Path
    start: int = 0
    """Samples of the file's own rate."""
    frames: int | None = None
    """None: to the end."""


def parse_segment(reference: str | Path, folder: Path | None = None) -> Segment:
    """Reads "path" or "path:start:frames".

    Args:
        reference: start and frames count samples of the file's own rate. A file that has the whole
            text as its name is that file.
        folder: what a relative path is relative to; None: the current one.

    Returns:
        The file and its part.
    """
    whole = Path(reference) if folder is None else folder / reference
    found = SEGMENT.fullmatch(str(reference))
    if found is None or whole.is_file():
        return Segment(whole)
    path = Path(found["path"]) if folder is None else folder / found["path"]
    return Segment(path, int(found["start"]), int(found["frames"]))


def load(reference: str | Path, *, folder: Path | None = None, rate: int = RATE) -> np.ndarray:
    """Samples of a file or a segment, mixed down and at one rate.

    Args:
        reference: "path" or "path:start:frames", see `parse_segment`.
        folder: what a relative path is relative to.
        rate: samples a second of the result.

    Returns:
        [n] float32, n at least 1.

    Raises:
        AudioError: there is no such file, it is no audio or cut off, it is empty, samples are NaN
            or infinite, or the segment isn't in it.
        MissingExtraError: soundfile or soxr is needed and not installed.
    """
    segment = parse_segment(reference, folder)
    samples, own_rate = _read(segment)  # [n, C]
    if not len(samples):
        raise AudioError(f"audio {reference}: holds no samples")
    wrong = samples.size - int(np.count_nonzero(np.isfinite(samples)))
    if wrong:
        raise AudioError(f"audio {reference}: {wrong} of {samples.size} samples are not finite")
    resampled = resample(samples, own_rate, rate)
    if not len(resampled):
        raise AudioError(
            f"audio {reference}: expected at least a sample at {rate} Hz, got {len(samples)} at "
            f"{own_rate} Hz"
        )
    return np.ascontiguousarray(resampled.mean(axis=1, dtype=np.float32))


def resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Band-limited resampling of each channel, by soxr at its high quality.

    Args:
        samples: [n, C] float32.
        rate: samples a second that come in.
        new_rate: samples a second that come out.

    Returns:
        [m, C] float32.

    Raises:
        MissingExtraError: rates differ and soxr is not installed.
    """
    if rate == new_rate:
        return samples
    soxr: Any = import_extra("soxr", "speech")
    return soxr.resample(samples, rate, new_rate, quality="HQ").reshape(-1, samples.shape[1])


def pad_or_trim(wave: np.ndarray, n_samples: int = CLIP) -> tuple[np.ndarray, int]:
    """A clip of a fixed length: samples are padded with zeros behind, never features.

    Args:
        wave: [n].
        n_samples: length of the result.

    Returns:
        [n_samples] in the type of `wave`, and how many of them are the clip's own.
    """
    own = wave[:n_samples]
    return np.pad(own, (0, n_samples - len(own))), len(own)


def pieces(wave: np.ndarray, n_samples: int = CLIP) -> tuple[np.ndarray, np.ndarray]:
    """Long audio as clips, one after the other, the last padded.

    Args:
        wave: [n], n at least 1.
        n_samples: length of a clip.

    Returns:
        [P, n_samples], and how many samples of each are its own, [P] int32.

    Raises:
        ValueError: there are no samples.
    """
    if not len(wave):
        raise ValueError("wave: expected at least one sample, got none")
    starts = range(0, len(wave), n_samples)
    found = [pad_or_trim(wave[start:], n_samples) for start in starts]
    return np.stack([clip for clip, _ in found]), np.asarray([n for _, n in found], np.int32)


def to_int16(wave: np.ndarray) -> np.ndarray:
    """Samples in [-1, 1] as 16-bit numbers; louder ones are clipped."""
    return np.clip(np.rint(wave * INT16), -INT16, INT16 - 1).astype(np.int16)


def wav_bytes(wave: np.ndarray, rate: int = RATE) -> bytes:
    """The content of a 16-bit mono WAV file of samples [n] in [-1, 1]."""
    content = io.BytesIO()
    with riff.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(to_int16(wave).tobytes())
    return content.getvalue()


def _read(segment: Segment) -> tuple[np.ndarray, int]:
    """Samples [n, C] float32 of a segment, and their rate."""
    if not segment.path.is_file():
        raise AudioError(f"audio {segment.path}: no such file")
    try:
        soundfile: Any = import_extra("soundfile", "speech")
    except MissingExtraError:
        if segment.path.suffix.lower() != ".wav":
            raise
        return _read_wav(segment)
    try:
        with soundfile.SoundFile(str(segment.path)) as file:
            length = _checked_length(segment, file.frames)
            file.seek(segment.start)
            samples = file.read(length, dtype="float32", always_2d=True)
            rate = file.samplerate
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        raise AudioError(f"audio {segment.path}: cannot be read ({first_line(error)})") from error
    _check_whole(segment, len(samples), length)
    return samples, rate


def _read_wav(segment: Segment) -> tuple[np.ndarray, int]:
    """The same of a 16-bit WAV file, without soundfile."""
    try:
        with riff.open(str(segment.path), "rb") as file:
            if file.getsampwidth() != 2:
                bits = 8 * file.getsampwidth()
                raise MissingExtraError(
                    f"audio {segment.path}: has {bits} bits a sample, which soundfile reads; "
                    "install it with: pip install 'jaxmethods[speech]'"
                )
            length = _checked_length(segment, file.getnframes())
            file.setpos(segment.start)
            data, channels = file.readframes(length), file.getnchannels()
            rate = file.getframerate()
    except (riff.Error, EOFError, OSError) as error:
        raise AudioError(f"audio {segment.path}: cannot be read ({first_line(error)})") from error
    whole = len(data) // (2 * channels)
    samples = np.frombuffer(data[: whole * 2 * channels], "<i2").reshape(whole, channels)
    _check_whole(segment, whole, length)
    return samples.astype(np.float32) / np.float32(INT16), rate


def _checked_length(segment: Segment, there: int) -> int:
    """How many samples are to be read of the `there` ones."""
    frames = there - segment.start if segment.frames is None else segment.frames
    if segment.start + frames > there:
        raise AudioError(
            f"audio {segment.path}: expected a segment within its {there} samples, got "
            f"{segment.start}:{frames}"
        )
    return frames


def _check_whole(segment: Segment, read: int, expected: int) -> None:
    if read < expected:
        raise AudioError(
            f"audio {segment.path}: is cut off: {read} of {expected} samples can be read"
        )
