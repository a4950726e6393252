"""Sizes of a Whisper; `checkpoint` reads them from a Hugging Face `config.json`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, PositiveInt, model_validator

from jaxmethods.config import Config
from jaxmethods.data.log_mel import LogMelConfig


class EncoderConfig(Config):
    """The tower that listens."""

    n_mels: PositiveInt = 80
    width: PositiveInt = 1280
    layers: PositiveInt = 32
    heads: PositiveInt = 20
    mlp_width: PositiveInt = 5120
    positions: PositiveInt = 1500
    """Outputs of a clip: half as many as frames of features."""
    norm_eps: Annotated[float, Field(gt=0)] = 1e-5

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(
                f"heads: expected a divisor of the width {self.width}, got {self.heads}"
            )
        return self

    @property
    def features(self) -> LogMelConfig:
        """The features that it takes: two frames of 10 ms a position."""
        return LogMelConfig(n_mels=self.n_mels, n_samples=self.positions * 2 * 160)


class TextConfig(Config):
    """The decoder that writes; it is as wide as the encoder."""

    vocab_size: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    mlp_width: PositiveInt
    positions: PositiveInt = 448
    tied: bool = True
    """The embedding is also the head."""


class WhisperConfig(Config):
    """Encoder and decoder."""

    encoder: EncoderConfig
    text: TextConfig

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.encoder.width % self.text.heads:
            raise ValueError(
                f"text.heads: expected a divisor of the width {self.encoder.width}, "
                f"got {self.text.heads}"
            )
        return self

    @property
    def features(self) -> LogMelConfig:
        """The features that it takes."""
        return self.encoder.features
