"""Recordings written down through a config: manifests, pieces, what cannot be heard."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

import jaxmethods
from jaxmethods.config import ConfigError
from jaxmethods.data import audio
from jaxmethods.data.tokenizer import TokenizerError
from jaxmethods.errors import DataError
from tests.lsm.recipes.folders import write_whisper


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A Whisper of 0.2 s pieces that has learned nothing, with words for a tokenizer."""
    pytest.importorskip("tokenizers")
    return write_whisper(tmp_path_factory.mktemp("whisper") / "model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A clip of half a second and a manifest with what can't be heard."""
    place = tmp_path_factory.mktemp("audio")
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 8000)
    (place / "a.wav").write_bytes(audio.wav_bytes(noise))
    (place / "text.wav").write_text("no audio")
    rows = [
        {"audio": "a.wav", "text": "Go left."},
        {"audio": "a.wav:0:3200"},
        {"audio": "text.wav", "text": "never heard"},
        {"audio": "a.wav:7000:2000", "text": "past the end"},
    ]
    (place / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def config(model, **settings):
    return {"method": "transcribe", "model": str(model), "new_tokens": 4} | settings


def test_unreadable_recordings_are_counted_or_an_error(model, folder, tmp_path):
    given = config(model, manifest=str(folder / "all.jsonl"), skip_unreadable=True)
    run = jaxmethods.run(given, tmp_path / "run")
    found = run.metrics["transcripts"]
    assert found["recordings"] == 4
    assert found["skipped"] == 2
    assert found["seconds"] == pytest.approx(0.7)
    rows = [json.loads(line) for line in (tmp_path / "run" / "transcripts.jsonl").open()]
    assert [row.get("skipped", False) for row in rows] == [False, False, True, True]
    # Half a second is three pieces, the segment one.
    assert rows[0]["text"].split()[: len(rows[1]["text"].split())] == rows[1]["text"].split()
    heard = len(rows[0]["text"].split())
    assert found["word_error_rate"] >= abs(heard - 2) / 2
    with pytest.raises(DataError, match=r"text.wav: cannot be read"):
        jaxmethods.run(given | {"skip_unreadable": False}, tmp_path / "other")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "audio: expected files, or a manifest"),
        ({"audio": ["missing.flac"]}, "missing.flac: no such file"),
        ({"audio": ["a.wav"], "language": "fr"}, "no token <|fr|>"),
    ],
)
def test_what_is_wrong_is_said_before_there_is_a_run_folder(
    model, tmp_path, monkeypatch, settings, message, folder
):
    monkeypatch.chdir(folder)
    with pytest.raises((ConfigError, DataError, TokenizerError)) as caught:
        jaxmethods.run(config(model, **settings), tmp_path / "run")
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("line", ["{", '"a.wav"', '{"text": "a"}', '{"audio": "a.wav", "text": 3}'])
def test_a_manifest_that_is_none_names_its_line(model, tmp_path, line):
    (tmp_path / "m.jsonl").write_text("\n" + line)
    with pytest.raises(DataError, match="line 2"):
        jaxmethods.run(config(model, manifest=str(tmp_path / "m.jsonl")), tmp_path / "run")


SPEECH = Path(os.environ.get("JAXMETHODS_SHARED", "")) / "data" / "speech"


@pytest.mark.slow
@pytest.mark.skipif(
    not (SPEECH / "whisper_tiny_en").is_dir(), reason="JAXMETHODS_SHARED is not set"
)
def test_a_real_whisper_hears_what_was_said(tmp_path):
    pytest.importorskip("soundfile")
    pytest.importorskip("tokenizers")
    given = {
        "method": "transcribe",
        "model": str(SPEECH / "whisper_tiny_en"),
        "manifest": str(SPEECH / "sentences_dev.jsonl"),
    }
    run = jaxmethods.run(given, tmp_path / "run")
    assert run.metrics["transcripts"]["word_error_rate"] <= 0.15
