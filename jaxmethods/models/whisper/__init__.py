"""Whisper: speech to features, and features to text (Radford et al., arXiv 2212.04356).

    loaded = whisper.load("path/to/whisper-tiny.en")
    features = log_mel(clips, loaded.config.features)                     # [B, 80, 3000]
    encoded = whisper.encode(loaded.params["encoder"], loaded.config.encoder, features)
    tokens = whisper.transcribe(loaded.params, loaded.config, features, prompt, end=50256)

The encoder alone is what speech-text models listen with. `read_transcriber` makes a function from
samples to text out of a whole folder.
"""

from __future__ import annotations

from jaxmethods.models.whisper.checkpoint import Loaded as Loaded
from jaxmethods.models.whisper.checkpoint import load, read_config, save
from jaxmethods.models.whisper.config import EncoderConfig as EncoderConfig
from jaxmethods.models.whisper.config import TextConfig as TextConfig
from jaxmethods.models.whisper.config import WhisperConfig as WhisperConfig
from jaxmethods.models.whisper.encoder import encode, init_encoder, sinusoids
from jaxmethods.models.whisper.text import cross_keys, decode, init_params, transcribe
from jaxmethods.models.whisper.transcriber import Transcriber as Transcriber
from jaxmethods.models.whisper.transcriber import read_transcriber

__all__ = [
    "cross_keys",
    "decode",
    "encode",
    "init_encoder",
    "init_params",
    "load",
    "read_config",
    "read_transcriber",
    "save",
    "sinusoids",
    "transcribe",
]
