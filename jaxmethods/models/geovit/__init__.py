"""Vision transformers for Earth observation: any sensor's bands, places on the ground, dates.

    config = geovit.EncoderConfig(width=192, depth=12, heads=3, patch=8, image_size=64)
    params = geovit.init(jax.random.key(0), config)
    features = geovit.encode(params, config, images).cls             # [B, D]

`load` reads released checkpoints of timm, MAE, SatMAE, Scale-MAE, DOFA, Prithvi and DINOv2.
"""

from __future__ import annotations

from jaxmethods.models.geovit import patches, positions, resize, wavelength
from jaxmethods.models.geovit.checkpoint import Loaded as Loaded
from jaxmethods.models.geovit.checkpoint import load, to_tensors
from jaxmethods.models.geovit.config import EncoderConfig as EncoderConfig
from jaxmethods.models.geovit.config import sized
from jaxmethods.models.geovit.encoder import Context as Context
from jaxmethods.models.geovit.encoder import Encoded as Encoded
from jaxmethods.models.geovit.encoder import at_size, encode, init, pool
from jaxmethods.models.geovit.wavelength import fixed_bands

__all__ = [
    "at_size",
    "encode",
    "fixed_bands",
    "init",
    "load",
    "patches",
    "pool",
    "positions",
    "resize",
    "sized",
    "to_tensors",
    "wavelength",
]
