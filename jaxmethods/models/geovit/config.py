"""Sizes of a vision transformer for Earth observation, and what its tokens are made of."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from jaxmethods.config import Config
from jaxmethods.models.clip.vit import Activation

Embedding = Literal["conv", "grouped", "per_sensor", "wavelength", "tubelet"]
Positions = Literal["sincos", "gsd", "group", "temporal", "tubelet", "learned"]
Pooling = Literal["cls", "mean", "cls+mean", "mean+std"]
KernelLayout = Literal["permute", "raw_view"]


class EncoderConfig(Config):
    """A timm vision transformer; the defaults are ViT-B/16 with three channels."""

    width: PositiveInt = 768
    depth: NonNegativeInt = 12
    heads: PositiveInt = 12
    mlp_ratio: PositiveFloat = 4.0
    patch: PositiveInt = 16
    """Pixels along a side of a patch."""
    image_size: PositiveInt = 224
    channels: PositiveInt = 3
    """Bands of an image; with `per_sensor` each sensor has its own number."""
    embedding: Embedding = "conv"
    """How pixels become tokens: one linear map, one for each group of bands (SatMAE), one for each
    sensor, one generated from the bands' wavelengths (DOFA), or one of every frame (Prithvi)."""
    positions: Positions = "sincos"
    """What tokens know of their place: fixed sines of the grid, of the ground in meters
    (Scale-MAE), with the group of bands or the date beside them (SatMAE), of frames (Prithvi), or
    a table of the checkpoint."""
    groups: tuple[tuple[NonNegativeInt, ...], ...] = ()
    """Indices of the bands of every group, for `grouped`."""
    sensors: tuple[tuple[str, PositiveInt], ...] = ()
    """Name and number of bands of every sensor, for `per_sensor`."""
    channel_width: PositiveInt = 256
    """Entries of a token's position that encode its group."""
    date_width: PositiveInt = 128
    """Entries that encode each of year, month and hour."""
    frames: PositiveInt = 1
    """Images of one place in a sample, for `temporal` and `tubelet`."""
    wave_width: Annotated[int, Field(gt=0, multiple_of=4)] = 128
    """Width of the generator of `wavelength`, which has four heads."""
    wave_tokens: PositiveInt = 128
    """Learned tokens that the generator reads beside the wavelengths."""
    wave_hidden: PositiveInt = 2048
    kernel_layout: KernelLayout = "permute"
    """How generated numbers become a kernel; `raw_view` mixes bands as DOFA's first code did."""
    padding: NonNegativeInt = 0
    """Zeros around an image; released DOFA checkpoints want 1."""
    registers: NonNegativeInt = 0
    """Tokens without a place (DINOv2)."""
    norm_after_pooling: bool = False
    """Whether the last norm is applied to the mean of the tokens, not to each of them."""
    hidden_act: Activation = "gelu"
    layer_norm_eps: PositiveFloat = 1e-6

    @model_validator(mode="after")
    def _parts_fit(self) -> EncoderConfig:
        if self.width % self.heads:
            raise ValueError(f"heads: expected a divisor of width = {self.width}, got {self.heads}")
        if self.image_size % self.patch:
            raise ValueError(
                f"patch: expected a divisor of image_size = {self.image_size}, got {self.patch}"
            )
        if (self.embedding == "grouped") != bool(self.groups):
            raise ValueError("groups: expected with embedding grouped, and only there")
        if (self.embedding == "per_sensor") != bool(self.sensors):
            raise ValueError("sensors: expected with embedding per_sensor, and only there")
        used = [band for group in self.groups for band in group]
        if len(set(used)) < len(used) or (used and max(used) >= self.channels):
            raise ValueError(
                f"groups: expected each of the bands 0 to {self.channels - 1} at most once, "
                f"got {self.groups}"
            )
        multiple = {"tubelet": 16, "learned": 1}.get(self.positions, 4)
        grid = self.width
        if self.positions == "group":
            grid -= self.channel_width
        if self.positions == "temporal":
            grid -= 3 * self.date_width
        if grid < 0 or grid % multiple:
            raise ValueError(
                f"width: {self.positions} positions leave {grid} of its entries for the grid; "
                f"expected a multiple of {multiple}"
            )
        return self

    @property
    def num_attention_heads(self) -> int:
        """The number of heads, by the name that `models.clip.vit` reads."""
        return self.heads

    @property
    def grid(self) -> int:
        """g: patches along a side of an image."""
        return self.image_size // self.patch

    @property
    def tokens(self) -> int:
        """T: tokens of a sample, class token and registers apart."""
        return self.grid**2 * max(len(self.groups), 1) * self.frames

    @property
    def inner(self) -> int:
        """Hidden units of a block's MLP."""
        return int(self.width * self.mlp_ratio)


def ratio_of(inner: int, width: int) -> float:
    """inner / width, rounded such that int(width * ratio), timm's rule, is `inner` again."""
    ratio = inner / width
    return ratio if int(width * ratio) == inner else math.nextafter(ratio, math.inf)


def sized(
    name: Literal["tiny", "small", "base", "large", "huge"], **changes: object
) -> EncoderConfig:
    """An encoder of one of the usual sizes: width, depth and heads.

    Args:
        name: "tiny", "small", "base", "large" or "huge".
        changes: other fields.

    Returns:
        The config.
    """
    width, depth, heads = {
        "tiny": (192, 12, 3),
        "small": (384, 12, 6),
        "base": (768, 12, 12),
        "large": (1024, 24, 16),
        "huge": (1280, 32, 16),
    }[name]
    return EncoderConfig.model_validate({"width": width, "depth": depth, "heads": heads} | changes)
