"""Golden arrays of VQ-CD as our configs and parameters; every size is read from the arrays."""

from __future__ import annotations

import numpy as np

from jaxmethods.models.temporal_unet import TemporalNetworkConfig
from jaxmethods.vqcd.torch_weights import dense_layers, our_layout, put
from jaxmethods.vqcd.types import Params


def partner(file, prefix):
    """The file that belongs to `file` and begins with `prefix`, whatever is appended to both."""
    own = file.stem.split("_")[0].rstrip("0123456789")
    return file.with_name(prefix + file.stem.removeprefix(own) + ".npz")


def network_of(unet, **changes) -> TemporalNetworkConfig:
    """The network of a `unet` file."""
    return TemporalNetworkConfig(
        channels=unet["x"].shape[2],
        dim=int(unet["dim"]),
        multipliers=tuple(int(m) for m in unet["dim_mults"]),
        horizon=unet["x"].shape[1],
        kernel=unet["w.down0.res0.block0.conv.weight"].shape[2],
        **changes,
    )


def tree_of(arrays, prefix) -> Params:
    """Everything below a prefix in our layout, as nested dictionaries."""
    tree: dict = {}
    for full, array in arrays.items():
        if full.startswith(prefix):
            name, part = full.removeprefix(prefix).rsplit(".", 1)
            put(tree, f"{name}.{part}", np.ascontiguousarray(our_layout(name, part, array)))
    return tree


def module_of(arrays, prefix) -> Params:
    """An alignment module."""
    return {
        "encoder": dense_layers(arrays, f"{prefix}enc."),
        "decoder": dense_layers(arrays, f"{prefix}dec."),
        "codebook": arrays[f"{prefix}codebook"],
    }
