"""Sizes of the temporal networks, U-Net and perceptron."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import PositiveInt, model_validator

from jaxmethods.config import Config


class TemporalSizesConfig(Config):
    """Sizes of a temporal network, whatever the vectors of its sequences are."""

    kind: Literal["unet", "mlp"] = "unet"
    """The U-Net, or a multilayer perceptron over the flattened sequence (an ablation)."""
    dim: PositiveInt = 64
    """Width that the multipliers multiply; also of the embeddings of step and condition."""
    multipliers: tuple[PositiveInt, ...] = (1, 4, 8)
    """Width of every level over `dim`. The first need not be 1."""
    horizon: PositiveInt = 8
    """T: positions."""
    kernel: PositiveInt = 5
    groups: PositiveInt = 8
    """Groups of GroupNorm; they divide every level's width."""
    hidden: PositiveInt = 256
    """Width of the perceptron, which has `layers` hidden layers."""
    layers: PositiveInt = 4
    compact: bool = False
    """Store, and so share out and optimize, live taps only."""
    convolution: Literal["auto", "matmul", "lax"] = "auto"
    """How a convolution is computed; `auto` chooses by shape and device."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What products are computed in; parameters and norms keep theirs."""

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        if not self.multipliers:
            raise ValueError("multipliers: expected at least one, got none")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel: expected an odd number of taps, got {self.kernel}")
        divisor = 2 ** (len(self.multipliers) - 1)
        if self.kind == "unet" and self.horizon % divisor:
            raise ValueError(
                f"horizon: expected a multiple of {divisor} with {len(self.multipliers)} levels, "
                f"got {self.horizon}"
            )
        for width in (self.dim, *self.widths):
            if self.kind == "unet" and width % self.groups:
                raise ValueError(
                    f"dim, multipliers: expected widths that the {self.groups} groups divide, "
                    f"got {width}"
                )
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of every level."""
        return tuple(self.dim * multiplier for multiplier in self.multipliers)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Positions on every level."""
        return tuple(self.horizon // 2**level for level in range(len(self.multipliers)))


class TemporalNetworkConfig(TemporalSizesConfig):
    """A temporal network."""

    channels: PositiveInt = 20
    """C: size of a position's vector."""
