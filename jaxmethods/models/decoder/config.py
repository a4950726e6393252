"""What distinguishes one decoder-only transformer from another, as switches of one config."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from jaxmethods.config import Config


class RopeScaling(Config):
    """How rotation frequencies are stretched for contexts longer than those of pretraining."""

    kind: Literal["linear", "dynamic", "llama3"]
    """`linear`: positions divided by the factor. `dynamic`: the base grows with the length of a
    sequence that is longer than `max_positions`. `llama3`: low frequencies divided by the
    factor, high ones kept, a ramp between."""
    factor: Annotated[float, Field(gt=0)]
    low_frequency_factor: Annotated[float, Field(gt=0)] = 1.0
    high_frequency_factor: Annotated[float, Field(gt=0)] = 4.0
    original_max_positions: PositiveInt = 8192


class LlamaSizes(Protocol):
    """What configs of small decoders say."""

    @property
    def width(self) -> int: ...
    @property
    def mlp_width(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...


class DecoderConfig(Config):
    """A decoder; `checkpoint` reads it from a Hugging Face `config.json`."""

    family: str
    """Hugging Face's `model_type`; says how the model is written to a folder."""
    vocab_size: PositiveInt
    width: PositiveInt
    mlp_width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    kv_heads: PositiveInt
    """Query head i reads key-value head i // (heads / kv_heads)."""
    head_dim: PositiveInt
    max_positions: PositiveInt
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    gated: bool = True
    """MLP down(activation(gate x) * up x), otherwise down(activation(up x))."""
    residual: Literal["sequential", "parallel", "parallel_one_norm"] = "sequential"
    """Whether the MLP reads the residual stream after attention, or before it, with a norm of its
    own or with attention's."""
    positions: Literal["rope", "learned"] = "rope"
    rotary_dim: NonNegativeInt = 0
    """Leading dimensions of each head that are rotated; even."""
    rotary_pairs: Literal["halves", "neighbors"] = "halves"
    """Which two dimensions turn together: i and i + rotary_dim / 2, or 2i and 2i + 1."""
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    rope_scaling: RopeScaling | None = None
    sliding_window: PositiveInt | None = None
    """A token sees itself and the `sliding_window - 1` tokens before it."""
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    qk_norm: bool = False
    """RMS norm of every query and key head before the rotation."""
    tied: bool = False
    """The embedding is also the head."""

    @classmethod
    def llama(
        cls,
        vocab_size: int,
        sizes: LlamaSizes,
        max_positions: int,
        kv_heads: int | None = None,
        tied: bool = False,
    ) -> Self:
        """Makes a Llama whose heads share its width.

        Args:
            vocab_size: V.
            sizes: width, that of the MLP, layers and heads.
            max_positions: tokens of the longest text.
            kv_heads: heads of keys and values; None: as many as of queries.
            tied: whether the embedding is also the head.

        Returns:
            The config.
        """
        size = sizes.width // sizes.heads
        return cls(
            family="llama",
            vocab_size=vocab_size,
            width=sizes.width,
            mlp_width=sizes.mlp_width,
            layers=sizes.layers,
            heads=sizes.heads,
            kv_heads=sizes.heads if kv_heads is None else kv_heads,
            head_dim=size,
            rotary_dim=size,
            max_positions=max_positions,
            tied=tied,
        )

    @model_validator(mode="after")
    def _sizes_fit(self) -> DecoderConfig:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"kv_heads: expected a divisor of the {self.heads} heads, got {self.kv_heads}"
            )
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise ValueError(
                f"rotary_dim: expected an even number up to head_dim ({self.head_dim}), "
                f"got {self.rotary_dim}"
            )
        return self
