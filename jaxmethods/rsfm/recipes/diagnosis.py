"""A masked autoencoder as a model that can be diagnosed: what it paints behind fixed masks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmethods.models.geovit.encoder import Context
from jaxmethods.rsfm.config import MAEConfig
from jaxmethods.rsfm.pretraining import mae
from jaxmethods.rsfm.pretraining.method import Pixels
from jaxmethods.rsfm.pretraining.targets import patch_targets, without_gaps
from jaxmethods.rsfm.pretraining.views import normalized
from jaxmethods.stages import Diagnosable

MOST = 256
"""Images of either set."""


def diagnosable(
    config: MAEConfig, params: Any, train: Pixels, held_out: Pixels, key: jax.Array
) -> Diagnosable:
    """Encoder and decoder on whole images with one mask each.

    Args:
        config: of both; without groups of bands.
        params: of both.
        train: images that it was trained on.
        held_out: other images.
        key: [] typed random key of the masks.

    Returns:
        Outputs are painted pixels of all patches [N, T p p C], zeros where a patch was seen or a
        pixel has no data; targets are the patches' normalized pixels, with the same zeros. Both
        are scaled so that an image's loss is the mean squared error over its hidden pixels.
    """

    def apply(params: Any, inputs: dict[str, jax.Array]) -> jax.Array:
        context = Context(gsd=inputs.get("gsd"))
        pred = mae.forward(params, config, inputs["images"], inputs["noise"], context).pred
        return (pred.reshape(inputs["scale"].shape) * inputs["scale"]).reshape(len(pred), -1)

    def examples(key: jax.Array, batch: Pixels) -> tuple[dict[str, jax.Array], jax.Array]:
        images = without_gaps(normalized(jnp.asarray(batch.images), batch), batch.valid)
        noise = jax.random.uniform(key, mae.noise_shape(config, len(images)))
        target, weight = patch_targets(images, config.encoder.patch, config.norm_pix, batch.valid)
        hidden = mae.draw(config, noise).hidden[:, :, None, None]  # [N, T, 1, 1]
        counted = hidden if weight is None else hidden * weight[..., None]
        counted = jnp.broadcast_to(counted, target.shape).astype(target.dtype)
        number = jnp.sum(counted, axis=(1, 2, 3), keepdims=True)
        scale = counted * jnp.sqrt(2 / jnp.maximum(number, 1))  # squared_error halves
        inputs = {"images": images, "noise": noise, "scale": scale}
        if batch.gsd is not None:
            inputs["gsd"] = jnp.asarray(batch.gsd)
        return inputs, (target * scale).reshape(len(images), -1)

    first, second = jax.random.split(key)
    sets = examples(first, train), examples(second, held_out)
    return Diagnosable("a masked autoencoder", apply, params, "squared_error", *sets)
