r"""Convolutions of short sequences through the taps that meet something.

    y_t = sum_j W_j x_{s t + j - p},    W [taps, in, out]

Where a sequence is short, outer taps only ever meet padding. What is left of a kernel is one with
fewer taps and less padding, computed as a matrix product over patches or by XLA's convolution,
whichever is faster (`choose`). Up-sampling puts zeros between positions; the product leaves them
out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.models.products import rows_product
from jaxmethods.models.temporal_unet_config import TemporalNetworkConfig


class Convolution(NamedTuple):
    """What of a convolution over time is static."""

    taps: int
    length: int
    """Positions that come in."""
    stride: int = 1
    up: int = 1
    """Positions between which zeros are put: 2 doubles their number."""

    @property
    def padding(self) -> int:
        """Zeros on either side."""
        return self.taps // 2

    @property
    def length_out(self) -> int:
        stuffed = self.up * (self.length - 1) + 1
        return (stuffed + 2 * self.padding - self.taps) // self.stride + 1

    @property
    def live(self) -> tuple[int, int]:
        """First and one past the last tap that ever meets an input position."""
        stuffed = self.up * (self.length - 1) + 1
        met = [
            tap
            for tap in range(self.taps)
            for place in range(self.length_out)
            if 0 <= (seen := place * self.stride + tap - self.padding) < stuffed
            and seen % self.up == 0
        ]
        return min(met), max(met) + 1


def choose(config: TemporalNetworkConfig, conv: Convolution) -> Literal["matmul", "lax"]:
    """How to compute a convolution on the default device.

    XLA's CPU convolution of few positions with wide channels takes 5 to 70 times as long as the
    same product written as a matrix product, and was faster for no size of a planner that was
    measured (`benchmarks/vqcd.py`). A single tap is a matrix product everywhere.
    """
    if config.convolution != "auto":
        return config.convolution
    alone = conv.taps == conv.stride == conv.up == 1
    return "matmul" if alone or jax.default_backend() == "cpu" else "lax"


def convolve(
    layer: Mapping[str, jax.Array], x: jax.Array, conv: Convolution, config: TemporalNetworkConfig
) -> jax.Array:
    """A convolution over time through its live taps.

    Args:
        layer: `weight` [taps, in, out], or its live taps alone, and `bias` [out].
        x: [B, T, in].
        conv: taps, length, stride, up-sampling; static.
        config: how to compute it.

    Returns:
        [B, T_out, out].
    """
    first, stop = conv.live
    weight = layer["weight"]
    if weight.shape[0] == conv.taps:
        weight = weight[first:stop]
    # What is left is a convolution with fewer taps and less padding.
    padding = (conv.padding - first, conv.padding - (conv.taps - stop))
    if config.dtype != "float32":
        x, weight = x.astype(config.dtype), weight.astype(config.dtype)
    if choose(config, conv) == "lax":
        y = jax.lax.conv_general_dilated(
            x,
            weight,
            (conv.stride,),
            [padding],
            lhs_dilation=(conv.up,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
    else:
        y = _convolve_by_matmul(x, weight, conv, padding)
    return y.astype(layer["bias"].dtype) + layer["bias"]


def _convolve_by_matmul(
    x: jax.Array, weight: jax.Array, conv: Convolution, padding: tuple[int, int]
) -> jax.Array:
    """Every output position's inputs side by side, times the kernel as one matrix."""
    taps, _, outputs = weight.shape
    if taps == 1 and conv.stride == conv.up == 1:
        return rows_product(x, weight[0])
    if conv.up == 2:
        return _upsample_by_matmul(x, weight, conv, padding[0])
    padded = jnp.pad(x, ((0, 0), padding, (0, 0)))
    last = conv.stride * (conv.length_out - 1) + 1
    seen = [padded[:, tap : tap + last : conv.stride] for tap in range(taps)]
    patches = jnp.concatenate(seen, axis=-1)  # [B, T_out, taps in]
    return rows_product(patches, weight.reshape(-1, outputs))  # [B, T_out, out]


def _upsample_by_matmul(
    x: jax.Array, weight: jax.Array, conv: Convolution, padding: int
) -> jax.Array:
    """Doubles the positions: even and odd outputs see the even or the odd taps."""
    taps, _, outputs = weight.shape
    batch, length, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
    halves = []
    for parity in range(2):
        # Output 2 m + parity meets position m + s where tap = padding + 2 s - parity.
        own = [tap for tap in range(taps) if (tap + parity - padding) % 2 == 0]
        shifts = [(tap + parity - padding) // 2 for tap in own]
        seen = [padded[:, 1 + shift : 1 + shift + length] for shift in shifts]
        kernel = weight[own[0] :: 2].reshape(-1, outputs)  # [taps/2 in, out]
        halves.append(rows_product(jnp.concatenate(seen, axis=-1), kernel))
    return jnp.stack(halves, axis=2).reshape(batch, conv.length_out, outputs)  # [B, T, 2, out]
