"""Published weights: a state dict of CoD's PyTorch network, exported to npz, as our parameters.

PyTorch keeps dense weights as (out, in), convolutions as (out, in, taps) and transposed
convolutions as (in, out, taps). Ours are [in, out] and [taps, in, out]; a transposed convolution is
the convolution of the input with zeros between its positions, whose taps run the other way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmethods.models.temporal_unet import Params, TemporalNetworkConfig, compacted, unet_layers


def from_torch(
    arrays: Mapping[str, np.ndarray], config: TemporalNetworkConfig, prefix: str = ""
) -> Params:
    """The U-Net's parameters from PyTorch's arrays.

    Args:
        arrays: flat names ("down0.res0.block0.conv.weight") to arrays in PyTorch's layout.
        config: sizes that the arrays must have; static. With `compact` dead taps are dropped.
        prefix: what the names begin with, "w.".

    Returns:
        What `models.temporal_unet.init` returns.

    Raises:
        ValueError: an array is missing, or has another shape.
    """
    params: dict[str, Any] = {}
    for name, layer in unet_layers(config):
        for part in ("weight", "bias"):
            full = f"{prefix}{name}.{part}"
            if full not in arrays:
                raise ValueError(f"weights: expected an array {full}, got none of that name")
            array = our_layout(name, part, np.asarray(arrays[full]))
            expected = (layer.outputs,)
            if part == "weight" and layer.inputs:
                taps = () if layer.conv is None else (layer.conv.taps,)
                expected = (*taps, layer.inputs, layer.outputs)
            if array.shape != expected:
                raise ValueError(
                    f"weights {full}: expected shape {expected} as [taps,] in, out, "
                    f"got {array.shape}"
                )
            put(params, f"{name}.{part}", jnp.asarray(array))
    return compacted(params, config) if config.compact else params


def our_layout(name: str, part: str, array: np.ndarray) -> np.ndarray:
    """One array of PyTorch in our layout; `name` is its layer's."""
    if part == "bias" or array.ndim == 1:
        return array
    if array.ndim == 2:
        return array.T
    if name.endswith("upsample"):
        return array.transpose(2, 0, 1)[::-1]
    return array.transpose(2, 1, 0)


def dense_layers(arrays: Mapping[str, np.ndarray], prefix: str) -> Params:
    """Dense layers `prefix`dense0.weight, ... of a perceptron as {"dense0": {"weight", "bias"}}."""
    params: dict[str, Any] = {}
    for full in arrays:
        if full.startswith(f"{prefix}dense"):
            name, part = full.removeprefix(prefix).rsplit(".", 1)
            put(params, f"{name}.{part}", jnp.asarray(our_layout(name, part, arrays[full])))
    return params


def put(tree: dict[str, Any], name: str, value: Any) -> None:
    """Sets an entry of nested dictionaries by its dotted name."""
    *parents, last = name.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = value
