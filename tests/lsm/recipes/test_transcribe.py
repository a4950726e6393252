"""Recordings written down through a config: manifests, pieces, what cannot be heard."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxmethods
from jaxmethods.config import ConfigError
from jaxmethods.data import audio
from jaxmethods.data.tokenizer import TokenizerError
from jaxmethods.errors import DataError
from jaxmethods.models import whisper

SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
WORDS = ("go", "stop", "left", "right", *SPECIAL, "<|0.00|>")
RAW = {
    "model_type": "whisper",
    "d_model": 8,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 8,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 8,
    "num_mel_bins": 8,
    "max_source_positions": 10,
    "max_target_positions": 12,
    "vocab_size": len(WORDS),
    "eos_token_id": WORDS.index("<|endoftext|>"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A Whisper of 0.2 s pieces that has learned nothing, with words for a tokenizer."""
    pytest.importorskip("tokenizers")
    place = tmp_path_factory.mktemp("whisper") / "model"
    config = whisper.read_config(RAW)
    params = jax.tree.map(lambda x: 9 * x, whisper.init_params(jax.random.key(3), config))
    whisper.save(place, RAW, config, params)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": WORDS.index(word), "content": word, "special": True} | flags for word in SPECIAL
    ]
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    words = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "go"}
    tokenizer = {"version": "1.0", "added_tokens": added, "model": words}
    tokenizer |= dict.fromkeys(("normalizer", "post_processor", "decoder", "truncation", "padding"))
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    (place / "tokenizer.json").write_text(json.dumps(tokenizer))
    return place


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
