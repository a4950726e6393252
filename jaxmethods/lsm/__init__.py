"""Self-powered speech-text model: follow a text instruction about speech, not only transcribe.

Yu, Liu, Hou, Ding, Tao, Zhang, "Self-Powered LLM Modality Expansion for Large Speech-Text Models",
EMNLP 2024, arXiv 2410.03798.

A model tuned on pairs of audio and transcript takes speech as the only instruction and transcribes
whatever it is asked (speech anchor bias). Here the language model p answers instructions I about
transcripts s itself, and its answers become the targets for the audio x:

    r ~ p(. | I, s),    L = - log p(r | I, connector(encoder(x)))

with the encoder frozen, a window Q-Former as connector, and connector and language model trained:

    speech = lsm.connect(params["connector"], config, frames, lengths)   # frames of whisper.encode
    rows = lsm.assemble(params["language_model"], speech, text)
    losses, learned = lsm.response_losses(params["language_model"], decoder_config, rows, suffix=R)

`tuner` trains both, `attribute` and `behavior` measure the bias inside and outside, `keep_response`
and `INSTRUCTIONS` (module `augmentation`) make the data, `load_published` reads published weights.
"""

from __future__ import annotations

from jaxmethods.lsm import augmentation, behavior, bias, prompts, transcripts, windows
from jaxmethods.lsm.augmentation import keep_response
from jaxmethods.lsm.bias import attribute
from jaxmethods.lsm.checkpoint import load_published
from jaxmethods.lsm.config import ConnectorConfig as ConnectorConfig
from jaxmethods.lsm.config import TuneConfig as TuneConfig
from jaxmethods.lsm.connector import Speech as Speech
from jaxmethods.lsm.connector import connect, init_connector
from jaxmethods.lsm.method import Data as Data
from jaxmethods.lsm.method import TuneState as TuneState
from jaxmethods.lsm.method import tuner
from jaxmethods.lsm.model import Model as Model
from jaxmethods.lsm.model import Text as Text
from jaxmethods.lsm.model import assemble, pack, packed_losses, respond, response_losses
from jaxmethods.lsm.schedules import warmup_then_linear
from jaxmethods.lsm.transcripts.normalize import normalize_basic, normalize_english
from jaxmethods.lsm.transcripts.word_errors import corpus_errors
from jaxmethods.lsm.windows import cut_windows, window_plan

__all__ = [
    "assemble",
    "attribute",
    "augmentation",
    "behavior",
    "bias",
    "connect",
    "corpus_errors",
    "cut_windows",
    "init_connector",
    "keep_response",
    "load_published",
    "normalize_basic",
    "normalize_english",
    "pack",
    "packed_losses",
    "prompts",
    "respond",
    "response_losses",
    "transcripts",
    "tuner",
    "warmup_then_linear",
    "window_plan",
    "windows",
]
