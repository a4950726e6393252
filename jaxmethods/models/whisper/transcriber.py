"""A Whisper folder as a function from samples to text.

    hear = read_transcriber("path/to/whisper-tiny.en")
    hear([audio.load("talk.flac")])  # ["And so, my fellow Americans, ..."]

Long audio is cut into pieces of 30 s whose texts are joined; timestamps are off. Which tokens a
transcript doesn't begin with, or never holds, is read from `generation_config.json`; folders from
before there was one say it in `config.json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.data import audio
from jaxmethods.data.log_mel import log_mel
from jaxmethods.data.tokenizer import Tokenizer, TokenizerError, folder_tokenizer
from jaxmethods.files import is_file, refusals
from jaxmethods.models.whisper.checkpoint import Loaded, load
from jaxmethods.models.whisper.text import transcribe

START, NO_TIMESTAMPS = "<|startoftranscript|>", "<|notimestamps|>"
TIMESTAMP = re.compile(r"<\|\d+\.\d\d\|>")


class Transcriber(NamedTuple):
    """A Whisper with its tokenizer."""

    loaded: Loaded
    tokenizer: Tokenizer
    prompt: tuple[int, ...]
    """What every transcript begins behind."""
    program: Callable[..., Any]
    """(params, clips [B, n_samples] int16) -> tokens and lengths."""
    batch: int
    """Clips that are transcribed at once."""

    def __call__(self, waves: Sequence[np.ndarray]) -> list[str]:
        """The text of each of several recordings, [n] float32 at 16 kHz, of any length."""
        size = self.loaded.config.features.n_samples
        cut = [audio.to_int16(audio.pieces(wave, size)[0]) for wave in waves]
        clips = np.concatenate(cut) if cut else np.zeros((0, size), np.int16)
        texts: list[str] = []
        for start in range(0, len(clips), self.batch):
            own = clips[start : start + self.batch]
            # One shape, hence one program: the last batch is filled with silence.
            full = np.pad(own, ((0, self.batch - len(own)), (0, 0)))
            found = jax.device_get(self.program(self.loaded.params, full))
            rows = [row[:n].tolist() for row, n in zip(*found, strict=True)]
            texts += [text.strip() for text in self.tokenizer.decode(rows[: len(own)])]
        left = iter(texts)
        return [" ".join(filter(None, [next(left) for _ in pieces])) for pieces in cut]


def read_transcriber(
    path: str | Path,
    *,
    language: str = "en",
    batch: int = 1,
    new_tokens: int = 224,
    beams: int = 1,
    dtype: Any = jnp.float32,
) -> Transcriber:
    """Reads a Whisper folder with its tokenizer.

    Args:
        path: a Hugging Face folder with `tokenizer.json`.
        language: of the speech, for models of several languages.
        batch: clips that are transcribed at once.
        new_tokens: of a piece, at most.
        beams: transcripts that are followed at once; 1: the greedy one.
        dtype: of parameters and computation.

    Returns:
        A function from recordings to texts.

    Raises:
        HubError, TokenizerError: the folder can't be used, or doesn't know the language.
        MissingExtraError: the package `tokenizers` is not installed.
    """
    loaded = load(path, dtype=dtype)
    tokenizer = folder_tokenizer(path)
    vocabulary = loaded.config.text.vocab_size
    prompt = _prompt(Path(path), tokenizer, language)
    never, at_first = _suppressed(Path(path), vocabulary)
    never = never | _timestamps(tokenizer, vocabulary)

    @jax.jit
    def program(params: Any, clips: jax.Array) -> Any:
        return transcribe(
            params,
            loaded.config,
            log_mel(clips, loaded.config.features),
            jnp.asarray(prompt),
            end=tokenizer.end,
            new_tokens=new_tokens,
            beams=beams,
            suppressed=jnp.asarray(never),
            first_suppressed=jnp.asarray(at_first),
        )

    return Transcriber(loaded, tokenizer, prompt, program, batch)


def _prompt(path: Path, tokenizer: Tokenizer, language: str) -> tuple[int, ...]:
    """Start, language and task where the model has several, no timestamps."""
    tokens = tokenizer.tokens
    several = "<|transcribe|>" in tokens and f"<|{language}|>" in tokens
    # English-only models have these tokens too, and are not prompted with them.
    english_only = _read(path / "generation_config.json").get("is_multilingual") is False
    english_only |= tokens.get(START) == 50257
    middle = [f"<|{language}|>", "<|transcribe|>"] if several and not english_only else []
    names = [START, *middle, NO_TIMESTAMPS]
    if english_only and language != "en":
        raise TokenizerError(f"model {path}: language: expected en, got {language}")
    missing = [name for name in names if name not in tokens]
    if missing or not (several or english_only):
        name = missing[0] if missing else f"<|{language}|>"
        raise TokenizerError(f"model {path}: its tokenizer has no token {name}")
    return tuple(tokens[name] for name in names)


def _suppressed(path: Path, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that are never said, and those that a transcript doesn't begin with, [V] bool."""
    settings = _read(path / "generation_config.json") or _read(path / "config.json")
    masks = []
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        mask = np.zeros(vocabulary, bool)
        mask[[token for token in settings.get(name) or [] if 0 <= token < vocabulary]] = True
        masks.append(mask)
    return masks[0], masks[1]


def _timestamps(tokenizer: Tokenizer, vocabulary: int) -> np.ndarray:
    """[V] bool: tokens behind `NO_TIMESTAMPS`, which older tokenizers don't name.

    Words that were added to a vocabulary stand behind them, too.
    """
    found = np.arange(vocabulary) > tokenizer.tokens[NO_TIMESTAMPS]
    words = [n for token, n in tokenizer.tokens.items() if not TIMESTAMP.fullmatch(token)]
    found[[number for number in words if number < vocabulary]] = False
    return found


def _read(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file."""
    if not is_file(file):
        return {}
    with refusals(file, "read"):
        content = file.read_bytes()
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"model {file}: is not valid JSON") from error
    return found if isinstance(found, dict) else {}
