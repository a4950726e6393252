"""Audio files: what is heard, and what is refused in one line."""

from __future__ import annotations

import subprocess
import sys
import wave

import numpy as np
import pytest

from jaxmethods.data import audio
from jaxmethods.data.audio import AudioError


def tone(rate=16_000, seconds=0.5, hertz=440.0):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


@pytest.fixture
def recording(tmp_path):
    file = tmp_path / "tone.wav"
    file.write_bytes(audio.wav_bytes(tone()))
    return file


def test_samples_come_back(recording):
    found = audio.load(recording)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, tone(), atol=1 / 32768)


def test_a_segment_counts_samples(recording):
    whole = audio.load(recording)
    np.testing.assert_array_equal(audio.load(f"{recording}:100:50"), whole[100:150])
    found = audio.load("tone.wav:100:50", folder=recording.parent)
    np.testing.assert_array_equal(found, whole[100:150])


def test_a_file_that_is_named_like_a_segment_is_itself(tmp_path):
    file = tmp_path / "a.wav:1:2"
    file.write_bytes(audio.wav_bytes(tone()))
    assert audio.parse_segment(file).frames is None


@pytest.mark.parametrize("segment", ["7999:2", "8000:1", "0:8001"])
def test_a_segment_past_the_end_is_refused(recording, segment):
    with pytest.raises(AudioError, match="expected a segment within its 8000 samples"):
        audio.load(f"{recording}:{segment}")


def test_what_cannot_be_heard_is_one_line(tmp_path, recording):
    text = tmp_path / "text.wav"
    text.write_text("this is no audio\n" * 100)
    empty = tmp_path / "empty.wav"
    empty.write_bytes(audio.wav_bytes(np.zeros(0)))
    for file, message in (
        (text, "cannot be read"),
        (empty, "holds no samples"),
        (tmp_path / "missing.flac", "no such file"),
    ):
        with pytest.raises(AudioError, match=message) as caught:
            audio.load(file)
        assert "\n" not in str(caught.value)


def test_a_wav_file_that_is_cut_off_is_not_taken_for_whole(tmp_path, monkeypatch, recording):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    cut = tmp_path / "cut.wav"
    cut.write_bytes(recording.read_bytes()[:8000])
    with pytest.raises(AudioError, match="cut off"):
        audio.load(cut)


def test_16_bit_wav_needs_no_package(recording, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    np.testing.assert_allclose(audio.load(recording), tone(), atol=1 / 32768)


def test_other_formats_name_their_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    file = tmp_path / "a.flac"
    file.write_bytes(b"fLaC")
    with pytest.raises(audio.MissingExtraError, match=r"jaxmethods\[speech\]"):
        audio.load(file)


def test_another_rate_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soxr", None)
    file = tmp_path / "a.wav"
    file.write_bytes(audio.wav_bytes(tone(8000), 8000))
    with pytest.raises(audio.MissingExtraError, match=r"jaxmethods\[speech\]"):
        audio.load(file)


def test_channels_are_averaged(tmp_path):
    file = tmp_path / "stereo.wav"
    left, right = audio.to_int16(tone()), audio.to_int16(tone(hertz=300))
    with wave.open(str(file), "wb") as out:
        out.setnchannels(2)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(np.stack([left, right], 1).tobytes())
    expected = (tone() + tone(hertz=300)) / 2
    np.testing.assert_allclose(audio.load(file), expected, atol=1 / 32768)


def test_long_audio_is_cut_into_pieces():
    wave_ = np.arange(25, dtype=np.float32)
    clips, samples = audio.pieces(wave_, 10)
    assert clips.shape == (3, 10)
    assert samples.tolist() == [10, 10, 5]
    np.testing.assert_array_equal(clips.ravel()[:25], wave_)
    np.testing.assert_array_equal(clips[2, 5:], 0)


def test_numbers_of_16_bits_are_clipped():
    assert audio.to_int16(np.asarray([-2.0, -1.0, 0.0, 1.0])).tolist() == [-32768, -32768, 0, 32767]


# With soundfile and soxr


@pytest.fixture
def soundfile():
    return pytest.importorskip("soundfile")


@pytest.fixture
def soxr():
    return pytest.importorskip("soxr")


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000])
def test_a_tone_is_the_same_at_every_rate(soxr, rate):
    found = audio.resample(tone(rate, 1.0, 1000)[:, None].astype(np.float32), rate, 16_000)
    expected = tone(16_000, 1.0, 1000)
    inside = slice(1000, 15_000)
    np.testing.assert_allclose(found[inside, 0], expected[inside], atol=1e-3)


def test_a_recording_too_short_for_a_sample_is_refused(soxr, tmp_path):
    (tmp_path / "click.wav").write_bytes(audio.wav_bytes(np.ones(1, np.float32), 48_000))
    with pytest.raises(AudioError, match="expected at least a sample at 16000 Hz, got 1 at 48000"):
        audio.load(tmp_path / "click.wav")


def test_what_is_too_high_to_be_kept_does_not_come_back_lower(soxr):
    found = audio.resample(tone(48_000, 1.0, 9000)[:, None].astype(np.float32), 48_000, 16_000)
    assert 20 * np.log10(np.abs(found[1000:15_000]).max() / 0.5) < -80


def test_a_segment_of_another_rate_is_its_excerpt(soundfile, soxr, tmp_path):
    """The published notation counts samples of the file's own rate."""
    rate, start, frames = 44_100, 44_100, 22_050
    sound = np.stack([tone(rate, 2.0, 500), tone(rate, 2.0, 700)], 1)
    soundfile.write(tmp_path / "a.flac", sound, rate)
    found = audio.load(tmp_path / f"a.flac:{start}:{frames}")
    assert len(found) == 8000
    mono = (tone(16_000, 2.0, 500) + tone(16_000, 2.0, 700)) / 2
    expected = mono[16_000:24_000]
    np.testing.assert_allclose(found[500:-500], expected[500:-500], atol=1e-3)


def test_a_truncated_flac_is_refused(soundfile, tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 48_000)
    soundfile.write(tmp_path / "whole.flac", noise, 16_000)
    content = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(content[: len(content) // 2])
    with pytest.raises(AudioError, match=r"cut off|cannot be read"):
        audio.load(tmp_path / "cut.flac")


def test_samples_that_are_not_finite_are_refused(soundfile, tmp_path):
    soundfile.write(tmp_path / "nan.wav", np.asarray([0.1, np.nan, 0.2]), 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match="1 of 3 samples are not finite"):
        audio.load(tmp_path / "nan.wav")


@pytest.mark.slow
def test_the_module_needs_no_package_to_be_imported():
    code = (
        "import sys; sys.modules['soundfile'] = sys.modules['soxr'] = None; "
        "import jaxmethods.data.audio"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_samples_have_no_pieces():
    with pytest.raises(ValueError, match="wave: expected at least one sample, got none"):
        audio.pieces(np.zeros(0, np.float32))
