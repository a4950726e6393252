"""The folders of a run: a Whisper that hears, a language model with its tokenizer and template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxmethods.data.tokenizer import Tokenizer, folder_tokenizer
from jaxmethods.errors import DataError, UserError
from jaxmethods.files import refusals
from jaxmethods.lsm.augmentation import INSTRUCTIONS
from jaxmethods.lsm.config import ConnectorConfig, TuneConfig
from jaxmethods.lsm.prompts import TEMPLATES, Rendered, Template, render
from jaxmethods.lsm.recipes.recordings.config import AugmentConfig, RecordingsRun
from jaxmethods.lsm.transcripts.normalize import normalizer_of
from jaxmethods.lsm.windows import cut_windows
from jaxmethods.models import decoder, whisper
from jaxmethods.models.hub.folders import open_folder
from jaxmethods.models.whisper.checkpoint import read_config as read_whisper_config


class Models:
    """Both models; weights are read where they are asked for, and once."""

    def __init__(self, run: RecordingsRun):
        """Reads configs and the tokenizer, no weights.

        Raises:
            HubError, TokenizerError, MissingExtraError: a folder can't be used.
            DataError: wordings that are none.
        """
        self.run = run
        folder = open_folder(run.speech.path)
        self.whisper = read_whisper_config(folder.config, str(folder.path / "config.json"))
        self.encoder = self.whisper.encoder
        self.language = decoder.read_config(open_folder(run.language.path))
        self.tokenizer = folder_tokenizer(run.language.path)
        self.wordings = read_wordings(run.augment)
        self.template: Template = TEMPLATES[run.language.template]
        self.normalize = normalizer_of(run.speech.language)  # how texts are compared

    def read_encoder(self) -> Any:
        """Parameters of the encoder."""
        return _encoder(self.run.speech.path, self.run.speech.dtype)

    def read_language(self, tune: TuneConfig | None = None) -> Any:
        """Parameters of the language model, in float32 where it trains as a whole."""
        whole = tune is not None and tune.trains == "all"
        return _language(self.run.language.path, "float32" if whole else self.run.language.dtype)

    def read_transcriber(self) -> whisper.Transcriber:
        """Whisper as a whole, for the cascade."""
        speech = self.run.speech
        tokens = min(224, self.whisper.text.positions // 2)  # what OpenAI's own code allows
        return _transcriber(
            speech.path, speech.language, speech.batch, tokens, self.run.judging.beams
        )

    @property
    def end(self) -> int:
        """The token that ends an answer."""
        return self.tokenizer.end

    @property
    def ends(self) -> tuple[int, ...]:
        """All tokens that end an answer that is written."""
        return self.tokenizer.ends

    def ids(self, text: str) -> list[int]:
        """A text as ids, with what the tokenizer begins every text with."""
        return with_begin(self.tokenizer, text)

    def text_prompt(self, wording: str, transcript: str) -> list[int]:
        """A question about a transcript."""
        return self.ids(self.template.render_text_prompt(wording, transcript))

    def row(self, wording: str, answer: str) -> Rendered:
        """A question about speech and its answer; the tag, the answer and the end token are the
        suffix."""
        found = render(wording, answer, self._encode, template=self.template, end="", begin=False)
        prefix = self.ids(self.template.render_prefix(wording))
        return Rendered(prefix, [*found.suffix, self.end], [*found.labels, self.end])

    def tag(self) -> list[int]:
        """What stands between speech and answer."""
        return self._encode(self.template.suffix)

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Ids as texts, without special tokens and space around them."""
        return [text.strip() for text in self.tokenizer.decode(rows)]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode([text])[0]

    def frames(self, seconds: float) -> int:
        """Frames of a recording of that many seconds, at most."""
        piece = self.encoder.features.n_samples
        return -(-int(seconds * 16_000) // piece) * self.encoder.positions

    def check_lengths(self) -> None:
        """Raises `UserError` for an instruction that, with speech and answer, is longer than the
        language model's context."""
        run, limit = self.run, self.language.max_positions
        kinds = {*run.judging.kinds, *self.generated_kinds()}
        speech = speech_tokens(run.connector, self.frames(run.data.longest))
        answer = len(self.tag()) + max(run.augment.new_tokens + 1, run.judging.new_tokens)
        for kind in sorted(kinds):
            for wording in self.wordings[kind]:
                own = len(self.ids(self.template.render_prefix(wording)))
                if own + speech + answer > limit:
                    raise UserError(
                        f"instruction {wording[:60]!r}: its {own} tokens, {speech} of speech and "
                        f"{answer} of an answer are more than the {limit} positions of "
                        f"{run.language.path}; shorten it, data.longest, augment.new_tokens or "
                        "judging.new_tokens"
                    )
        if run.augment.longest_prompt + run.augment.new_tokens > limit:
            raise UserError(
                f"augment.longest_prompt: {run.augment.longest_prompt} tokens and "
                f"{run.augment.new_tokens} new ones are more than the {limit} positions of "
                f"{run.language.path}"
            )

    def generated_kinds(self) -> list[str]:
        """Kinds of instructions that some student learns answers to."""
        students = [student.generated.model_dump() for student in self.run.students]
        return [kind for kind in INSTRUCTIONS if any(own[kind] for own in students)]


def with_begin(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text behind one first token, which the text may have itself."""
    ids = tokenizer.encode([text])[0]
    begin = [] if tokenizer.begin is None else [tokenizer.begin]
    return ids if ids[:1] == begin else begin + ids


def speech_tokens(config: ConnectorConfig, frames: int) -> int:
    """Tokens that speech of that many frames becomes, at most."""
    encoded = jax.ShapeDtypeStruct((1, frames, 1), jnp.float32)
    lengths = jax.ShapeDtypeStruct((1,), jnp.int32)

    def cut(encoded: jax.Array, lengths: jax.Array) -> jax.Array:
        found = cut_windows(
            encoded, lengths, config.policy, seconds=config.seconds, window=config.window
        )
        return found.mask

    return jax.eval_shape(cut, encoded, lengths).shape[1] * config.qformer.queries


def read_wordings(config: AugmentConfig) -> dict[str, tuple[str, ...]]:
    """Kind -> wordings: ours, or those of a file.

    Raises:
        FileError, DataError: a file that is no object of kinds and lists of texts.
    """
    own: Any = {}
    if config.wordings is not None:
        with refusals(config.wordings, "read"):
            content = config.wordings.read_bytes()
        try:
            own = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DataError(f"data {config.wordings}: is not valid JSON") from error
        _check_wordings(own, config.wordings)
    return {
        kind: tuple(
            text.replace("{language}", config.target_language) for text in own.get(kind, ours)
        )
        for kind, ours in INSTRUCTIONS.items()
    }


def _check_wordings(own: Any, file: Path) -> None:
    good = isinstance(own, dict) and all(
        isinstance(texts, list)
        and texts
        and all(isinstance(text, str) and text.strip() for text in texts)
        for texts in own.values()
    )
    if not good:
        raise DataError(f"data {file}: expected an object of kinds and lists of texts")
    unknown = sorted(set(own) - set(INSTRUCTIONS))
    if unknown:
        raise DataError(
            f"data {file}: expected kinds among {', '.join(INSTRUCTIONS)}, got {unknown[0]!r}"
        )


@lru_cache(maxsize=1)
def _encoder(path: Path, dtype: str) -> Any:
    loaded = whisper.load(path, dtype=jnp.dtype(dtype), encoder_only=True)
    return loaded.params["encoder"]


@lru_cache(maxsize=2)
def _language(path: Path, dtype: str) -> Any:
    return decoder.load(path, dtype=jnp.dtype(dtype))[1]


@lru_cache(maxsize=1)
def _transcriber(
    path: Path, language: str, batch: int, tokens: int, beams: int
) -> whisper.Transcriber:
    return whisper.read_transcriber(
        path, language=language, batch=batch, new_tokens=tokens, beams=beams
    )
