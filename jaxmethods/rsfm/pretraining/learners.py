r"""What a step of pretraining goes down on, one objective for each kind of config.

| config | objective | views |
| --- | --- | --- |
| `MAEConfig` | MAE; SatMAE where it has groups of bands or dates | images, dates |
| `ScaleMAEConfig` | Scale-MAE | images of twice the encoder's size, meters of a pixel |
| `ContrastConfig` | InfoNCE between two sensors | images of both |
| `ImageTextConfig` | CLIP with an encoder of `geovit` | images, captions |
| `CLIPConfig` | CLIP with both towers of a released model, to go on with it | images, captions |

A learner is pure: parameters stay float32 and are cast to the type of the computation inside;
statistics and losses are float32 (`pretraining.method` makes steps of it).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxmethods.models import clip
from jaxmethods.models.clip.contrastive import clip_loss, infonce
from jaxmethods.models.clip.vit import linear
from jaxmethods.models.geovit import Context, EncoderConfig, encode, pool
from jaxmethods.models.geovit import init as init_encoder
from jaxmethods.models.geovit.encoder import position_table
from jaxmethods.models.geovit.resize import resize
from jaxmethods.numerics.keys import named
from jaxmethods.rsfm.config import (
    ContrastConfig,
    ImageTextConfig,
    MAEConfig,
    PretrainConfig,
    ScaleMAEConfig,
)
from jaxmethods.rsfm.pretraining import mae, scale_mae
from jaxmethods.rsfm.pretraining.mae import init_dense
from jaxmethods.rsfm.pretraining.views import Views

PretrainedConfig: TypeAlias = (
    MAEConfig | ScaleMAEConfig | ContrastConfig | ImageTextConfig | clip.CLIPConfig
)
FIRST_SCALE = 2.6593
"""ln(1 / 0.07), where CLIP's scale begins."""


class Learner(NamedTuple):
    """An objective as two pure functions."""

    init: Callable[[jax.Array], Any]
    """[] typed key -> fresh parameters, float32."""
    loss: Callable[[Any, Views, jax.Array], jax.Array]
    """(parameters, views, [] typed key) -> [] float32."""


def learner_of(config: PretrainedConfig, training: PretrainConfig) -> Learner:
    """The objective that a config stands for.

    Args:
        config: one of the table above.
        training: the type of the computation, and whether blocks are computed again.

    Returns:
        Fresh parameters and loss.
    """
    if isinstance(config, MAEConfig):
        return _masked(config, training)
    if isinstance(config, ScaleMAEConfig):
        return _multiscale(config, training)
    if isinstance(config, ContrastConfig):
        return _contrast(config, training)
    if isinstance(config, ImageTextConfig):
        return _image_text(config, training)
    return _released_clip(config, training)


def masked_loss(
    params: Any, config: MAEConfig, training: PretrainConfig, views: Views, noise: jax.Array
) -> jax.Array:
    """The loss of a masked autoencoder, computed in the type that the training says.

    Args:
        params: float32.
        config: static.
        training: static.
        views: normalized images.
        noise: that decides the masks.

    Returns:
        [] float32.
    """
    context = Context(gsd=views.gsd, timestamps=views.timestamps)
    narrow = narrowed(params, training)
    own = (narrow, config, views.images, noise, context)
    return mae.forward(*own, valid=views.valid, remat=training.remat).loss


def sensor_features(
    params: Any, config: ContrastConfig, sensor: str, images: jax.Array, context: Context
) -> jax.Array:
    """What one sensor's images are compared by.

    Args:
        params: {"encoder", "heads"}.
        config: static.
        sensor: one of the two; static.
        images: [B, H, W, C], normalized.
        context: what positions need.

    Returns:
        [B, P], of any length.
    """
    encoded = encode(params["encoder"], config.encoder, images, context, sensor=sensor)
    return linear(params["heads"][sensor], pool(params["encoder"], config.encoder, encoded, "mean"))


def image_features(
    params: Any, config: ImageTextConfig, images: jax.Array, context: Context
) -> jax.Array:
    """Images in the space of the captions.

    Args:
        params: {"encoder", "visual_projection", ...}.
        config: static.
        images: [B, H, W, C], normalized.
        context: what positions need.

    Returns:
        [B, P], of any length.
    """
    encoded = encode(params["encoder"], config.encoder, images, context)
    pooled = pool(params["encoder"], config.encoder, encoded, "mean")
    return linear(params["visual_projection"], pooled)


def caption_features(
    params: Any, config: ImageTextConfig, ids: jax.Array, mask: jax.Array
) -> jax.Array:
    """Captions in the space of the images.

    Args:
        params: {"text_model", "text_projection", ...}.
        config: static.
        ids: [B, L] int32.
        mask: [B, L], 0 at padding.

    Returns:
        [B, P], of any length.
    """
    return clip.text_features(params, text_config(config), ids, mask).features


def text_config(config: ImageTextConfig) -> clip.CLIPConfig:
    """The config under which `models.clip` reads the text tower."""
    return clip.CLIPConfig(text=config.text, projection_dim=config.projection)


def plain_encoder(
    params: Any, config: EncoderConfig, sensor: str, timestamp: jax.Array | None = None
) -> tuple[Any, EncoderConfig]:
    """A trained encoder as one of single images of one sensor, which any evaluation can use.

    Args:
        params: of the encoder.
        config: its config.
        sensor: whose embedding is kept where there is one for each.
        timestamp: [3] year - 2002, month - 1, hour, at which an encoder of dates is read.

    Returns:
        Parameters and config; positions of dates become a table.

    Raises:
        ValueError: an encoder of dates without a date.
    """
    if config.embedding == "per_sensor":
        channels = dict(config.sensors)[sensor]
        changes = {"embedding": "conv", "sensors": (), "channels": channels}
        return (
            params | {"patch_embed": params["patch_embed"][sensor]},
            config.model_copy(update=changes),
        )
    if config.positions != "temporal":
        return params, config
    if timestamp is None:
        raise ValueError("timestamp: expected [3] (year - 2002, month - 1, hour), got none")
    single = config.model_copy(update={"frames": 1})
    when = Context(timestamps=timestamp[None, None])
    # SatMAE's class token has no position: the table's first row is zeros.
    table = position_table({}, single, when)[0]
    return params | {"positions": table}, single.model_copy(update={"positions": "learned"})


def narrowed(params: Any, training: PretrainConfig) -> Any:
    """Parameters in the type of the computation."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(training.dtype)), params)


def _masked(config: MAEConfig, training: PretrainConfig) -> Learner:
    def loss(params: Any, views: Views, key: jax.Array) -> jax.Array:
        noise = jax.random.uniform(named(key, "noise"), mae.noise_shape(config, len(views.images)))
        return masked_loss(params, config, training, views, noise)

    return Learner(lambda key: mae.init(key, config), loss)


def _multiscale(config: ScaleMAEConfig, training: PretrainConfig) -> Learner:
    """The encoder sees an image at half its resolution, the decoder paints the image."""
    size, tokens = config.encoder.image_size, config.encoder.tokens

    def loss(params: Any, views: Views, key: jax.Array) -> jax.Array:
        if views.gsd is None:
            raise ValueError("gsd: expected meters of a pixel for every image [B], got none")
        noise = jax.random.uniform(named(key, "noise"), (len(views.images), tokens))
        small = resize(views.images, (size, size), "area")
        own = (narrowed(params, training), config, small, views.images, noise, 2 * views.gsd)
        return scale_mae.forward(*own, valid=views.valid).loss

    return Learner(lambda key: scale_mae.init(key, config), loss)


def _contrast(config: ContrastConfig, training: PretrainConfig) -> Learner:
    names = [name for name, _ in config.encoder.sensors]

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, 3)
        width = config.encoder.width
        heads = {
            name: init_dense(own, config.projection, width)
            for name, own in zip(names, keys[1:], strict=True)
        }
        return {"encoder": init_encoder(keys[0], config.encoder), "heads": heads}

    def loss(params: Any, views: Views, key: jax.Array) -> jax.Array:
        del key  # nothing is hidden
        if views.other is None:
            raise ValueError("other: expected images of a second sensor, got none")
        narrow = narrowed(params, training)
        features = [
            sensor_features(narrow, config, name, own.images, Context(gsd=own.gsd))
            for name, own in zip(names, (views, views.other), strict=True)
        ]
        return infonce(features[0], features[1], config.temperature)

    return Learner(init, loss)


def _image_text(config: ImageTextConfig, training: PretrainConfig) -> Learner:
    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, 3)
        return {
            "encoder": init_encoder(keys[0], config.encoder),
            "visual_projection": init_dense(keys[1], config.projection, config.encoder.width),
            **clip.init_text(keys[2], config.text, config.projection),
            "logit_scale": jnp.asarray(FIRST_SCALE),
        }

    def loss(params: Any, views: Views, key: jax.Array) -> jax.Array:
        del key
        narrow, texts = narrowed(params, training), _texts(views)
        image = image_features(narrow, config, views.images, Context(gsd=views.gsd))
        text = caption_features(narrow, config, texts.ids, texts.mask)
        return clip_loss(image, text, params["logit_scale"])

    return Learner(init, loss)


def _released_clip(config: clip.CLIPConfig, training: PretrainConfig) -> Learner:
    def loss(params: Any, views: Views, key: jax.Array) -> jax.Array:
        del key
        narrow, texts = narrowed(params, training), _texts(views)
        pixels = views.images.astype(training.dtype)
        image = clip.image_features(narrow, config, pixels).features
        text = clip.text_features(narrow, config, texts.ids, texts.mask).features
        return clip_loss(image, text, params["logit_scale"])

    return Learner(lambda key: clip.init(key, config), loss)


def _texts(views: Views) -> Any:
    if views.texts is None:
        raise ValueError("texts: expected a caption of every image, got none")
    return views.texts
