"""Folders of models that have learned nothing and compile in a moment, and recordings of noise."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np

from jaxmethods.data import audio
from jaxmethods.models import decoder, whisper
from jaxmethods.models.decoder.config import DecoderConfig
from tests.programs import weights

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
LANGUAGE = DecoderConfig(
    family="llama",
    vocab_size=17,
    width=8,
    mlp_width=12,
    layers=1,
    heads=2,
    kv_heads=2,
    head_dim=4,
    rotary_dim=4,
    max_positions=256,
)
SPOKEN = ("<unk>", "<s>", "</s>", "go", "stop", "left", "right", ".", "?", ":", "who", "what")


def write_tokenizer(place: Path, words: tuple[str, ...], special: tuple[str, ...]) -> None:
    """A word is a token."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": words.index(word), "content": word, "special": True} | flags for word in special
    ]
    vocabulary = {word: number for number, word in enumerate(words)}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": words[0]}
    tokenizer = {"version": "1.0", "added_tokens": added, "model": model}
    tokenizer |= dict.fromkeys(("normalizer", "post_processor", "decoder", "truncation", "padding"))
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    (place / "tokenizer.json").write_text(json.dumps(tokenizer))


def write_whisper(place: Path) -> Path:
    """A Whisper of 0.2 s pieces, with words for a tokenizer."""
    config = whisper.read_config(RAW)
    params = jax.tree.map(lambda x: 9 * x, whisper.init_params(jax.random.key(3), config))
    whisper.save(place, RAW, config, params)
    write_tokenizer(place, WORDS, SPECIAL)
    return place


def write_language_model(place: Path) -> Path:
    """A small Llama of a dozen words."""
    decoder.save(place, LANGUAGE, weights(decoder.init_params, LANGUAGE, seed=35, scale=0.5))
    write_tokenizer(place, (*SPOKEN, *(f"w{n}" for n in range(5))), SPOKEN[:3])
    (place / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    return place


def noise(samples: int, seed: int = 0) -> np.ndarray:
    """Samples that are heard as something."""
    return np.random.default_rng(seed).uniform(-0.3, 0.3, samples)


def write_recordings(place: Path, name: str = "all.jsonl", rows: int = 6) -> Path:
    """Recordings of a second's tenths, and a manifest with what is said and meant."""
    lines = []
    for number in range(rows):
        file = place / f"{number}.wav"
        file.write_bytes(audio.wav_bytes(noise(1600 + 400 * number, number)))
        row = {"audio": file.name, "text": ("go left", "stop", "go right")[number % 3]}
        lines.append(row | {"intent": ("go", "stop", "go")[number % 3], "sentiment": "what"})
    manifest = place / name
    manifest.write_text("".join(json.dumps(row) + "\n" for row in lines))
    return manifest
